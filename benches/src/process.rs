//! Programs, and what they cost: processor time in nanoseconds, wall time, memory.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// Runs a closure in the network and mount namespaces of a process, on a thread of its own: programs that it starts
/// are then inside at once, and no `nsenter` is measured along.
///
/// # Errors
/// The process is gone, or there is no right to enter.
pub fn inside<T: Send>(pid: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter = move || -> Result<()> {
        let open = |name| File::open(format!("/proc/{pid}/ns/{name}")).context("open a namespace");
        let (net, mount) = (open("net")?, open("mnt")?);
        // A mount namespace can't be changed while the threads share their working directory.
        unshare(CloneFlags::CLONE_FS).context("unshare CLONE_FS")?;
        setns(net.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        setns(mount.as_fd(), CloneFlags::CLONE_NEWNS).context("enter the mount namespace")
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || enter().and_then(|()| work()));
        thread.join().map_err(|_| anyhow!("the thread in the namespace panicked"))?
    })
}

/// What a run cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Processor time, user and system, of the program and the children it waited for, in seconds.
    pub cpu: f64,
    /// From its start to its end, in seconds.
    pub wall: f64,
}

/// Runs programs one after another; the cost is that of all. No other child of this process may end meanwhile.
///
/// # Errors
/// One of them, or getrusage.
pub fn cost(work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (cpu, began) = (children_cpu()?, Instant::now());
    work()?;
    Ok(Cost { wall: began.elapsed().as_secs_f64(), cpu: (children_cpu()? - cpu).as_secs_f64() })
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// Runs a program to its end with a text as its input, and gives its standard error's last line.
///
/// # Errors
/// It fails; the error holds what it said.
pub fn feed(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // It may end before it has read all: its status says why.
    let _cut = child.stdin.take().context("no stdin")?.write_all(input);
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{}: {}: {err} {out}", command.get_program().display(), output.status);
    Ok(err.lines().last().unwrap_or_default().to_owned())
}

/// A program that `benches/peers` built.
///
/// # Errors
/// It did not.
pub fn peer(name: &str) -> Result<PathBuf> {
    let cache = std::env::var_os("WG_OVERLAY_CACHE").context("WG_OVERLAY_CACHE is not set")?;
    let path = Path::new(&cache).join("bench/bin").join(name);
    ensure!(path.is_file(), "no {}: benches/peers builds it, or says why not", path.display());
    Ok(path)
}
