//! What a process and its children say to the kernel and to the WireGuard device, as strace sees it: an observer from
//! outside, which needs no word of the process itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wg_overlay_e2e::lab::eventually;

use crate::process::inside;

/// A running strace.
pub struct Trace {
    strace: Child,
    log: PathBuf,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// Sends on netlink sockets, and requests to the device's socket: reads and writes alike.
    pub all: usize,
    /// Peers that were written to the device.
    pub peers: usize,
    /// Routes that were set or removed.
    pub routes: usize,
    /// Netlink messages that change something besides routes.
    pub others: usize,
}

impl Messages {
    /// What changes something.
    pub fn writes(&self) -> usize {
        self.peers + self.routes + self.others
    }
}

impl Trace {
    /// Attaches to a process and all its threads. strace asks the kernel what a socket is, and is told of those of its own
    /// network namespace alone: so it runs in the process's.
    pub fn start(pid: u32, folder: &Path) -> Result<Self> {
        let (log, said) = (folder.join("strace.log"), folder.join("strace.err"));
        let mut command = Command::new("strace");
        // -yy tells netlink and unix sockets apart; nothing is cut short.
        command.args([
            "-f",
            "-yy",
            "-v",
            "-s",
            "1000000",
            "-e",
            "trace=sendto,sendmsg,sendmmsg,write,writev",
        ]);
        command.arg("-o").arg(&log).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said)?);
        let strace = inside(pid, || command.spawn().context("start strace"))?;
        let trace = Self { strace, log };
        eventually(Duration::from_secs(10), "strace has attached", || {
            let text = fs::read_to_string(&said)?;
            ensure!(text.contains("attached"), "strace: {}", text.trim());
            Ok(())
        })?;
        Ok(trace)
    }

    /// Detaches and counts.
    pub fn stop(mut self) -> Result<Messages> {
        self.end();
        let text = fs::read(&self.log).context("read strace's log")?;
        Ok(count(&String::from_utf8_lossy(&text)))
    }

    fn end(&mut self) {
        let _ended = i32::try_from(self.strace.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGINT));
        let _reaped = self.strace.wait();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.end();
    }
}

fn count(log: &str) -> Messages {
    let mut messages = Messages::default();
    let mut sent_to_device = String::new();
    for line in log.lines() {
        if line.contains("<NETLINK:") {
            messages.all += 1;
            for kind in line.split("nlmsg_type=").skip(1) {
                let kind = kind.split(',').next().unwrap_or_default();
                if kind == "RTM_NEWROUTE" || kind == "RTM_DELROUTE" {
                    messages.routes += 1;
                } else if changes(kind) {
                    messages.others += 1;
                }
            }
        } else if line.contains("<UNIX") && (line.contains("set=1\\n") || line.contains("get=1\\n")) {
            messages.all += 1;
            sent_to_device.push_str(line);
        } else if line.contains("<UNIX") {
            sent_to_device.push_str(line);
        }
    }
    messages.peers = sent_to_device.matches("public_key=").count();
    messages
}

/// Netlink types that change something: rtnetlink's, nftables' and those of the kernel's WireGuard.
fn changes(kind: &str) -> bool {
    let verbs = ["RTM_NEW", "RTM_DEL", "RTM_SET", "NFT_MSG_NEW", "NFT_MSG_DEL", "NFT_MSG_DESTROY"];
    verbs.iter().any(|verb| kind.contains(verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_counts_by_its_messages_and_reads_change_nothing() {
        let log = r#"11 sendto(9<NETLINK:[ROUTE:7]>, [{{nlmsg_len=60, nlmsg_type=RTM_NEWROUTE, nlmsg_flags=1}, {}}, {{nlmsg_len=60, nlmsg_type=RTM_DELROUTE, nlmsg_flags=1}, {}}], 120, 0, NULL, 0) = 120
12 sendto(9<NETLINK:[ROUTE:7]>, {{nlmsg_len=20, nlmsg_type=RTM_GETROUTE, nlmsg_flags=1}, {}}, 20, 0, NULL, 0) = 20
12 sendmsg(4<NETLINK:[NETFILTER:9]>, [{nlmsg_len=20, nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWSETELEM, nlmsg_flags=1}], 0) = 20
12 write(5<UNIX-STREAM:[1->2]>, "set=1\npublic_key=aa\nendpoint=1.2.3.4:5\n\n", 40) = 40
12 write(5<UNIX-STREAM:[1->2]>, "get=1\n\n", 7) = 7
12 write(6<TCP:[1->2]>, "public_key=aa", 13) = 13"#;
        assert_eq!(count(log), Messages { all: 5, peers: 1, routes: 2, others: 1 });
    }
}
