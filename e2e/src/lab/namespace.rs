//! One machine of the lab: a network, mount and UTS namespace held by an anchor process.
//!
//! `/run`, `/opt` and `/var/lib` are empty and its own, `/etc` is a copy with a machine-id of its
//! own; the rest of the host's files are shared (the program `machine` makes it). It knows nothing of the underlay or of
//! agents.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::leftover::{Folder, end_namespace};
use super::{helper, run};

/// A network namespace, held by somebody else, that programs can be started in.
#[derive(Clone, Debug)]
pub struct Network {
    file: PathBuf,
}

impl Network {
    /// The namespace that `ip netns` knows by this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { file: Path::new("/run/netns").join(name) }
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = enter();
        command.arg("--net").arg(&self.file).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a program inside to its end and gives its output.
    ///
    /// # Errors
    /// It fails; the error holds the namespace, the command and what it said.
    pub fn exec<I>(&self, program: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        run(self.command(program).args(args)).with_context(|| format!("in {}", self.file.display()))
    }
}

/// Enters a namespace under the process id of the command; where to comes next. Without the program the command's start
/// fails and names it.
fn enter() -> Command {
    let mut command = Command::new(helper("machine").unwrap_or_else(|_| "machine".into()));
    command.arg("enter");
    command
}

/// A machine. Its drop ends everything that runs in it.
pub struct Namespace {
    name: String,
    pid: u32,
    /// The anchor and what was started by `spawn`, to be reaped.
    children: RefCell<Vec<Child>>,
}

impl Namespace {
    /// Starts the anchor and waits until its mounts are in place.
    pub(super) fn start(name: &str, folder: &Folder) -> Result<Self> {
        let mut command = Command::new(helper("machine")?);
        command.args(["hold", name]);
        let log = folder.path().join(format!("logs/{name}-anchor.log"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().context("start the anchor")?;
        let (pid, output) = (child.id(), child.stdout.take());
        let namespace = Self { name: name.to_owned(), pid, children: RefCell::new(vec![child]) };
        folder.record(pid)?;
        let mut line = String::new();
        BufReader::new(output.context("the anchor has no output")?).read_line(&mut line)?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        ensure!(line == "ready\n", "namespace {name} did not come up: {}", said().trim());
        Ok(namespace)
    }

    /// Its name, also its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The anchor's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its network alone.
    #[must_use]
    pub fn network(&self) -> Network {
        Network { file: PathBuf::from(format!("/proc/{}/ns/net", self.pid)) }
    }

    /// A path inside as seen from outside; not for `/proc` and `/sys`, which show whoever reads.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new(&format!("/proc/{}/root", self.pid)).join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A command that will run inside, with the process id that `spawn` gives.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_in(None, program)
    }

    /// Likewise in a network namespace of its own, a pod's.
    pub(super) fn command_in(&self, netns: Option<&Path>, program: impl AsRef<OsStr>) -> Command {
        let mut command = enter();
        command.args(["--holder", &self.pid.to_string()]);
        if let Some(path) = netns {
            command.arg("--net").arg(self.path(path));
        }
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a program inside to its end and gives its output.
    ///
    /// # Errors
    /// It fails; the error holds the namespace, the command and what it said.
    pub fn exec<I>(&self, program: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        run(self.command(program).args(args)).with_context(|| format!("on {}", self.name))
    }

    /// Runs several `ip` commands, one a line, in one process; the first that fails ends it.
    ///
    /// # Errors
    /// One failed.
    pub fn ip(&self, commands: &[String]) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start `ip`")?;
        let text = commands.join("\n") + "\n";
        // It may end before it has read all: its status and message say why.
        let _cut = child.stdin.take().context("no stdin")?.write_all(text.as_bytes());
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip on {}: {}: {commands:?}", self.name, said.trim());
        Ok(())
    }

    /// Sets a kernel parameter of its network namespace, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is none of that name, or it doesn't take the value.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let line = "printf %s \"$2\" > \"/proc/sys/$1\"";
        self.exec("sh", ["-c", line, "sh", name, value]).map(drop)
    }

    /// Starts a program whose output is appended to a log, and gives its process id. It lives as
    /// long as the namespace at most.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn(&self, command: &mut Command, log: &Path) -> Result<u32> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start a program on {}", self.name))?;
        let pid = child.id();
        self.children.borrow_mut().push(child);
        Ok(pid)
    }

    /// Waits for a program that `spawn` started, and gives its exit status.
    ///
    /// # Errors
    /// It is not one of this namespace.
    pub fn wait(&self, pid: u32) -> Result<std::process::ExitStatus> {
        let mut children = self.children.borrow_mut();
        let at = children.iter().position(|child| child.id() == pid);
        let at = at.with_context(|| format!("no process {pid} was started on {}", self.name))?;
        Ok(children.remove(at).wait()?)
    }

    /// Whether a program that `spawn` started still runs.
    #[must_use]
    pub fn runs(&self, pid: u32) -> bool {
        let mut children = self.children.borrow_mut();
        children.iter_mut().any(|child| child.id() == pid && matches!(child.try_wait(), Ok(None)))
    }

    /// The line that enters it by hand.
    #[must_use]
    pub fn enter_line(&self) -> String {
        format!("nsenter --target {} --mount --uts --net -- bash", self.pid)
    }

    /// Ends all that runs in it, at once, as a power cut does. Its links go with it.
    pub fn end(&self) {
        end_namespace(self.pid);
        for child in self.children.borrow_mut().iter_mut() {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.end();
    }
}
