//! An agent that stands still after each of its requests: strace stops it there, so that chance has no part in where it is
//! killed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::eventually;
use super::leftover::signal;
use super::node::Node;

/// How strace tells of a stop that it has made.
const STOP: &str = " --- SIGSTOP {";

/// A running agent that goes from one request to the next.
pub struct Steps {
    agent: u32,
    log: PathBuf,
}

impl Node {
    /// Has strace stop the running agent after everything that one of its threads sends: to the kernel by netlink, to a
    /// user-space device, to the API server.
    ///
    /// # Errors
    /// No agent runs, or there is no strace.
    pub fn step_agent(&self) -> Result<Steps> {
        let agent = self.agent_pid().context("no agent was started")?;
        let log = self.log("steps");
        let _none_yet = fs::remove_file(&log);
        let mut strace = self.namespace().command("strace");
        strace.args([
            "-f",
            "-yy",
            "-e",
            "trace=sendto,sendmsg",
            "-e",
            "inject=sendto,sendmsg:signal=SIGSTOP",
        ]);
        strace.arg("-o").arg(&log).args(["-p", &agent.to_string()]);
        self.namespace().spawn(&mut strace, &self.log("strace"))?;
        let steps = Steps { agent, log };
        eventually(Duration::from_secs(10), "strace follows the agent", || {
            let all = steps.threads()?;
            ensure!(!all.iter().any(|status| status.contains("TracerPid:\t0\n")), "not all of its threads");
            Ok(())
        })?;
        Ok(steps)
    }
}

impl Steps {
    /// What was sent so far, each by the kind of its socket (`NETLINK ROUTE`, `UNIX-STREAM`, …). After the last the agent
    /// stands.
    ///
    /// # Errors
    /// There is no log.
    pub fn taken(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log).context("read strace's log")?;
        let lines: Vec<&str> = text.lines().collect();
        let stops = lines.iter().enumerate().filter(|(_, line)| line.contains(STOP));
        let sent = |(at, stop): (usize, &&str)| {
            let thread = stop.split(' ').next().unwrap_or_default();
            let mut before = lines.iter().take(at).rev();
            let call = before.find(|line| line.starts_with(thread) && line.contains(" send"));
            let socket =
                call.and_then(|call| call.split_once('<')?.1.split(|c: char| c.is_ascii_digit()).next());
            socket.unwrap_or("?").trim_end_matches([':', '[']).replace(":[", " ")
        };
        Ok(stops.map(sent).collect())
    }

    /// Whether all of its threads wait for something: it does not stand then, and sends nothing.
    ///
    /// # Errors
    /// The agent has ended.
    pub fn rests(&self) -> Result<bool> {
        Ok(self.threads()?.iter().all(|status| status.contains("State:\tS")))
    }

    /// Lets the agent go on to its next request.
    pub fn go_on(&self) {
        signal(self.agent, Signal::CONT);
    }

    /// What /proc says of each thread.
    fn threads(&self) -> Result<Vec<String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.agent)).context("the agent has ended")?;
        tasks.map(|task| Ok(fs::read_to_string(task?.path().join("status"))?)).collect()
    }
}
