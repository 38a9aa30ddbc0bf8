//! The lab's folder, and the removal of what a killed run left.
//!
//! Everything of a lab hangs on its anchor processes: namespaces, links and mounts go with them.
//! So the folder's list of anchors is all that is needed to remove a lab.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// The name of every lab's folder begins so.
const PREFIX: &str = "wgo-e2e-";
/// The file in it that names the lab's processes; the first line is the test's own.
const PROCESSES: &str = "processes";

/// A folder for one lab, removed when dropped.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{count}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make the lab's folder {}", path.display()))?;
        let folder = Self { path };
        folder.record(std::process::id())?;
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a process: the next start ends it if this run can't.
    pub fn record(&self, pid: u32) -> Result<()> {
        let started = start_time(pid).with_context(|| format!("process {pid} has ended"))?;
        let path = self.path.join(PROCESSES);
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
        writeln!(file, "{pid} {started}").with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("the lab's folder {} stays: {error}", self.path.display());
        }
    }
}

/// Removes every lab whose test process has ended.
pub fn remove() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            remove_if_abandoned(&entry.path());
        }
    }
}

fn remove_if_abandoned(folder: &Path) {
    let text = fs::read_to_string(folder.join(PROCESSES)).unwrap_or_default();
    let mut lines = text.lines().map(|line| {
        let (pid, started) = line.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid).as_deref() == Some(started)).then_some(pid)
    });
    if let Some(None) = lines.next() {
        eprintln!("removing what a killed run left: {}", folder.display());
        lines.flatten().for_each(end_namespace);
        // Another test may be removing it at the same moment.
        let _gone = fs::remove_dir_all(folder);
    }
}

/// Kills every process in the mount or the network namespace of an anchor, and the anchor, and waits for them: a container
/// on a node has a mount namespace of its own, and a pod a network.
pub fn end_namespace(anchor: u32) {
    let Some(anchor) = Namespaces::of(anchor) else { return };
    if Namespaces::of(std::process::id()).is_none_or(|own| own.meets(&anchor)) {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let held: Vec<u32> =
            pids.filter(|pid| Namespaces::of(*pid).is_some_and(|of| of.meets(&anchor))).collect();
        if held.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in held {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal; a process that has ended is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ended = kill_process(pid, signal);
    }
}

struct Namespaces {
    mount: PathBuf,
    network: PathBuf,
}

impl Namespaces {
    /// A zombie has none.
    fn of(pid: u32) -> Option<Self> {
        let read = |name| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        Some(Self { mount: read("mnt")?, network: read("net")? })
    }

    fn meets(&self, other: &Self) -> bool {
        self.mount == other.mount || self.network == other.network
    }
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)): with it a pid names one process for good.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19).map(str::to_owned)
}
