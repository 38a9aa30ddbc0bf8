//! Two devices that sleep until they are asked for, for nodes where most kernels need none.
//!
//! Owns a listening socket and each device's process while there is one. A device is a process of its own, so that what
//! sleeps stays small, and a device that dies is there again at the next question.

mod door;

use std::{
    io::{self, Write},
    os::unix::net::UnixStream as StdUnixStream,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use nix::net::if_::if_nametoindex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::{Child, ChildStderr, Command},
    task::JoinHandle,
    time::{Instant, interval, sleep, timeout},
};

use self::door::Door;
use crate::{DeviceError, uapi::UapiSocket};

/// The MTU of a device that was asked for without one: an underlay of 1500 less the tunnel's 80.
const DEFAULT_MTU: u16 = 1420;

/// How long a device may take until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long whoever connects may take to ask.
const QUESTION_PATIENCE: Duration = Duration::from_secs(1);

/// How often the socket's file is looked at: somebody may have emptied its folder.
const LOOK: Duration = Duration::from_secs(5);

/// Longest question, in bytes.
const QUESTION: u64 = 100;

/// What is to sleep, and where it can be woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Names of the devices' links. The first is meant by a question that names none.
    pub names: [String; 2],
    /// The socket at which root asks for a device: `start`, `mtu=BYTES` and `name=LINK` after it or not, answered by `ok`
    /// once the device is there, else by `error: REASON`, a line each.
    pub socket: PathBuf,
}

/// Sleeps until `shutdown` resolves, and runs the device that `command` starts for a name and an MTU whenever it is asked
/// for and does not run. A device ends with its link, or with this.
///
/// # Errors
/// [`DeviceError`]: the socket can't be made, or another process listens there.
pub async fn standby(
    config: Standby,
    command: impl Fn(&str, u16) -> Command,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DeviceError> {
    let mut door = Door::open(&config)?;
    let [mut first, mut second] = config.names.clone().map(|name| Device { name, process: None });
    let mut look = interval(LOOK);
    let mut shutdown = std::pin::pin!(shutdown);
    tracing::info!(devices = ?config.names, socket = %config.socket.display(), "asleep until one is asked for");
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = door.listener.accept() => match accepted {
                Ok((stream, _)) => converse(stream, [&mut first, &mut second], &command).await,
                Err(error) => {
                    tracing::warn!(%error, "connection not taken");
                    sleep(QUESTION_PATIENCE).await;
                }
            },
            (status, _) = first.ended() => tracing::info!(device = first.name, status, "the device has ended; asleep again"),
            (status, _) = second.ended() => tracing::info!(device = second.name, status, "the device has ended; asleep again"),
            _ = look.tick() => if !door.is_ours() {
                match Door::open(&config) {
                    Ok(new) => {
                        tracing::warn!(socket = %config.socket.display(), "somebody removed the socket; it is made anew");
                        door = new;
                    }
                    Err(error) if first.process.is_some() || second.process.is_some() => {
                        tracing::warn!(%error, "somebody removed the socket; what runs goes on without");
                    }
                    // started again, a pod finds a folder that was made anew
                    Err(error) => return Err(error),
                }
            },
        }
    }
    tracing::info!("asked to stop");
    first.stop().await;
    second.stop().await;
    Ok(())
}

/// One question and its answer. Whoever asked may be gone by then: the device is there all the same.
async fn converse(
    mut stream: UnixStream,
    devices: [&mut Device; 2],
    command: &impl Fn(&str, u16) -> Command,
) {
    let mut question = String::new();
    let asked = async {
        let mut reader = BufReader::new(&mut stream).take(QUESTION);
        reader.read_line(&mut question).await
    };
    if !matches!(timeout(QUESTION_PATIENCE, asked).await, Ok(Ok(1..))) {
        return; // a look whether somebody is here
    }
    let answer = match parse(&question) {
        Some(Question { name, mtu }) => {
            match devices.into_iter().find(|device| name.is_none_or(|name| *name == device.name)) {
                Some(device) => device.ensure(|name| command(name, mtu)).await,
                None => Err(format!("no device here is called {:?}", name.unwrap_or_default())),
            }
        }
        None => {
            Err(format!("{:?} is no question: expected `start mtu=BYTES name=LINK`", question.trim_end()))
        }
    };
    let line = match answer {
        Ok(()) => "ok\n".to_owned(),
        Err(reason) => {
            tracing::warn!(reason, "the device does not start");
            format!("error: {reason}\n")
        }
    };
    let _ = stream.write_all(line.as_bytes()).await;
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    name: Option<&'a str>,
    mtu: u16,
}

pub(crate) fn parse(question: &str) -> Option<Question<'_>> {
    let mut words = question.trim_end().split(' ').peekable();
    words.next_if_eq(&"start")?;
    let mtu = match words.next_if(|word| word.starts_with("mtu=")) {
        Some(word) => word.strip_prefix("mtu=")?.parse().ok()?,
        None => DEFAULT_MTU,
    };
    let name = words.next_if(|word| word.starts_with("name="));
    let asked = Question { name: name.and_then(|word| word.strip_prefix("name=")), mtu };
    words.next().is_none().then_some(asked)
}

/// The device's process, while there is one.
struct Device {
    name: String,
    process: Option<(Child, JoinHandle<String>)>,
}

impl Device {
    /// Whether the device is there: its link, and a process that answers. One that lost its link is about to end.
    fn runs(&self) -> bool {
        if_nametoindex(self.name.as_str()).is_ok()
            && StdUnixStream::connect(UapiSocket::path_of(&self.name)).is_ok()
    }

    /// Starts the device where it does not run, and waits until it does.
    async fn ensure(&mut self, command: impl Fn(&str) -> Command) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut started = false;
        while !self.runs() {
            if Instant::now() > deadline {
                return Err(format!("it runs and does not answer after {} s", PATIENCE.as_secs()));
            }
            if self.process.is_none() {
                let mut child = command(&self.name)
                    .stdin(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .map_err(|error| format!("can't start its process: {error}"))?;
                let log = tokio::spawn(pass_on(child.stderr.take()));
                self.process = Some((child, log));
                started = true;
            }
            tokio::select! {
                (status, last) = self.ended() => if started { return Err(format!("{status}: {last}")) },
                () = sleep(Duration::from_millis(10)) => {}
            }
        }
        Ok(())
    }

    /// Waits for the process to end and gives its status and the last line of its log; for ever where there is none.
    async fn ended(&mut self) -> (String, String) {
        let Some((child, log)) = &mut self.process else { return std::future::pending().await };
        let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        let last = log.await.unwrap_or_default();
        self.process = None;
        (status, last)
    }

    async fn stop(&mut self) {
        let Some((child, _)) = &self.process else { return };
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
        self.ended().await;
    }
}

/// Repeats the process's log in this one's, and gives its last line.
async fn pass_on(log: Option<ChildStderr>) -> String {
    let mut last = String::new();
    let Some(log) = log else { return last };
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(io::stderr(), "{line}");
        last = line;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_question_is_understood() {
        let asked = |name, mtu| Some(Question { name, mtu });
        assert_eq!(parse("start mtu=8920\n"), asked(None, 8920));
        assert_eq!(parse("start\n"), asked(None, DEFAULT_MTU));
        assert_eq!(parse("start mtu=8920 name=wgo1\n"), asked(Some("wgo1"), 8920));
        assert_eq!(parse("start name=wgo0\n"), asked(Some("wgo0"), DEFAULT_MTU));
        for text in [
            "",
            "\n",
            "stop",
            "start mtu=",
            "start mtu=70000",
            "start mtu=-1",
            "start  mtu=1420",
            "start 1420",
            "start name=wgo1 mtu=1420",
            "start mtu=1420 name=wgo1 name=wgo0",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
