//! Bringing a WireGuard device into being: by the kernel, else by a process of its own, which is started here or, where
//! a socket is configured, asked for there (`wg-overlay device --standby`, another pod of this node).
//!
//! The process outlives the agent, so that an agent's restart leaves the tunnel alone. It is not watched: when it ends,
//! its link goes, which raises an event like any other.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use wg_overlay_mesh::Link;

use crate::{detach, wireguard};

/// Who is to implement a device that does not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceMode {
    /// The kernel, and where it has no WireGuard, user space.
    #[default]
    Auto,
    /// The kernel only.
    Kernel,
    /// User space only.
    UserSpace,
}

/// The program that runs a device in user space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProgram {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments; after them comes the name of the link.
    pub arguments: Vec<OsString>,
    /// Whether it takes `--mtu BYTES`.
    pub takes_mtu: bool,
}

impl DeviceProgram {
    /// This program itself: `wg-overlay device LINK --mtu BYTES`.
    ///
    /// # Errors
    /// Where the program's own path cannot be read.
    pub fn own() -> io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, arguments: vec!["device".into()], takes_mtu: true })
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel has no WireGuard and user space was not allowed.
    #[error("the kernel has no WireGuard; load its module (modprobe wireguard), or set `device: auto`")]
    NoKernel(#[source] io::Error),
    /// The program did not start.
    #[error("cannot start the user-space device {program}")]
    Start {
        /// The program's path.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program ended before it was ready.
    #[error("the user-space device ended at its start ({status}); {log} ends with: {tail}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The path of its log.
        log: String,
        /// The last lines of its log.
        tail: String,
    },
    /// The program runs and does not answer.
    #[error("nothing answers at {socket} after {} s; see {log}", PATIENCE.as_secs())]
    Silent {
        /// The socket.
        socket: String,
        /// The path of its log.
        log: String,
    },
    /// Nobody answers where the device is asked for.
    #[error(
        "the user-space device's pod on this node isn't up yet: no answer at {socket}; kubectl -n wg-overlay get pods -o wide -l app.kubernetes.io/component=device shows it"
    )]
    Absent {
        /// The socket.
        socket: String,
        /// What came instead of an answer.
        #[source]
        source: io::Error,
    },
    /// The device was asked for and did not start.
    #[error("the user-space device does not start: {0}")]
    Refused(String),
}

impl DeviceError {
    /// Whether trying again may help without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::NoKernel(_))
    }
}

/// How long a user-space device may take until its socket answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts a user-space device and waits until it answers.
pub(crate) async fn start(
    program: &DeviceProgram,
    state_dir: &Path,
    device: Link,
    mtu: Option<u32>,
) -> Result<(), DeviceError> {
    let failed = |source| DeviceError::Start { program: program.program.display().to_string(), source };
    let log = state_dir.join(log_name(device));
    let output = open_log(&log).map_err(failed)?;
    let mut command = tokio::process::Command::new(&program.program);
    command.args(&program.arguments).arg(device.name()).stdin(Stdio::null());
    if let Some(mtu) = mtu.filter(|_| program.takes_mtu) {
        command.arg("--mtu").arg(mtu.to_string());
    }
    command.stdout(output.try_clone().map_err(failed)?).stderr(output);
    detach::session_of_its_own(&mut command);
    let mut process = command.spawn().map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let log = log.display().to_string();
    while !wireguard::socket_is_live(device) {
        // A program may go on in a child and end itself well (wireguard-go does): then only its socket tells.
        if let Some(status) = process.try_wait().map_err(failed)?.filter(|status| !status.success()) {
            return Err(DeviceError::Ended { status, tail: tail(&log), log });
        }
        if Instant::now() > deadline {
            let socket = wireguard::socket_path(device).display().to_string();
            return Err(DeviceError::Silent { socket, log });
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(()) // the runtime reaps a dropped child when it ends
}

/// A device that starts is waited for on the other side, as long as [`PATIENCE`].
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Asks for a user-space device where it sleeps. `start mtu=BYTES name=LINK` is answered by `ok` once the device is there,
/// else by `error: REASON`, a line each. The first device goes unnamed, as one of an earlier version knows no other.
pub(crate) async fn ask(socket: &Path, device: Link, mtu: Option<u32>) -> Result<(), DeviceError> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mtu = mtu.map(|mtu| format!(" mtu={mtu}")).unwrap_or_default();
        let name = if device == Link::Device { String::new() } else { format!(" name={device}") };
        stream.write_all(format!("start{mtu}{name}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let answer = timeout(ANSWER_PATIENCE, exchange).await.unwrap_or_else(|late| Err(late.into()));
    let absent = |source| DeviceError::Absent { socket: socket.display().to_string(), source };
    match answer.map_err(absent)?.trim_end() {
        "ok" => Ok(()),
        "" => Err(absent(io::ErrorKind::UnexpectedEof.into())),
        other => Err(DeviceError::Refused(other.trim_start_matches("error: ").chars().take(500).collect())),
    }
}

/// A log for each device, in the agent's folder.
fn log_name(device: Link) -> String {
    if device == Link::Device { "device.log".to_owned() } else { format!("device-{device}.log") }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn tail(path: &str) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}
