//! An agent at whose requests strace stands: it stops after each, so that chance has no part in where it is killed; or every
//! second one fails.

use std::fs;
use std::path::{Path, PathBuf};
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
        self.trace(agent, &log, "signal=SIGSTOP")?;
        Ok(Steps { agent, log })
    }

    /// Has every second of these fail with an error (`EBUSY`, …), in each of the running agent's threads, until the failures
    /// are ended.
    ///
    /// # Errors
    /// As `step_agent`.
    pub fn fail_agents_requests(&self, error: &str) -> Result<Failures<'_>> {
        let agent = self.agent_pid().context("no agent was started")?;
        let strace = self.trace(agent, &self.log("failures"), &format!("error={error}:when=1+2"))?;
        Ok(Failures { node: self, strace })
    }

    /// Starts strace on all threads of the agent; gives its process id.
    fn trace(&self, agent: u32, log: &Path, inject: &str) -> Result<u32> {
        let mut strace = self.namespace().command("strace");
        strace.args(["-f", "-yy", "-e", "trace=sendto,sendmsg", "-e"]);
        strace.arg(format!("inject=sendto,sendmsg:{inject}"));
        strace.arg("-o").arg(log).args(["-p", &agent.to_string()]);
        let strace = self.namespace().spawn(&mut strace, &self.log("strace"))?;
        eventually(Duration::from_secs(10), "strace follows the agent", || {
            let all = threads(agent)?;
            ensure!(!all.iter().any(|status| status.contains("TracerPid:\t0\n")), "not all of its threads");
            Ok(())
        })?;
        Ok(strace)
    }
}

/// Requests that fail until this is ended.
pub struct Failures<'a> {
    node: &'a Node,
    strace: u32,
}

impl Failures<'_> {
    /// From now on they succeed again.
    ///
    /// # Errors
    /// strace does not end.
    pub fn end(self) -> Result<()> {
        signal(self.strace, Signal::TERM);
        self.node.namespace().wait(self.strace).map(drop)
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
        Ok(threads(self.agent)?.iter().all(|status| status.contains("State:\tS")))
    }

    /// Lets the agent go on to its next request.
    pub fn go_on(&self) {
        signal(self.agent, Signal::CONT);
    }
}

/// What /proc says of each thread of the agent.
fn threads(agent: u32) -> Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{agent}/task")).context("the agent has ended")?;
    tasks.map(|task| Ok(fs::read_to_string(task?.path().join("status"))?)).collect()
}
