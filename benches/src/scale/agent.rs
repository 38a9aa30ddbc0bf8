//! The agent of the lab's first node, from its start on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{Lab, Node, eventually_every};

use crate::process::inside;
use crate::watched::{all_cpu_of, at_rest, memory_of};

/// Longer than the debounce of 20 ms and an answer of the API server together.
const REST: Duration = Duration::from_millis(150);
/// How long a whole cluster may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A converged agent; ended when dropped.
pub struct Agent<'a> {
    node: &'a Node,
    pid: u32,
}

impl<'a> Agent<'a> {
    /// Starts the agent of node 1 and waits until it says that it is converged.
    pub fn start(lab: &'a Lab, resync: &str) -> Result<Self> {
        let node = lab.node(1)?;
        let said = node.agent_log().matches(CONVERGED).count();
        node.set_agent_config("resyncInterval", json!(resync));
        node.start_agent(&[])?;
        let agent = Self { node, pid: node.agent_pid().context("no agent runs")? };
        eventually_every(Duration::from_millis(1), PATIENCE, "the agent converges", || {
            ensure!(node.agent_log().matches(CONVERGED).count() > said, "it has not said so");
            Ok(())
        })?;
        Ok(agent)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process that holds the node's namespaces.
    pub fn namespace(&self) -> u32 {
        self.node.namespace().pid()
    }

    /// Waits until it rests, and gives its processor time so far, that of its ended children included, in seconds.
    pub fn at_rest(&self) -> Result<f64> {
        at_rest(self.pid, REST)
    }

    /// Waits until it has begun to work and rests again.
    pub fn works_and_rests(&self, before: f64) -> Result<f64> {
        eventually_every(Duration::from_millis(1), PATIENCE, "the agent works", || {
            ensure!(all_cpu_of(self.pid)? > before, "it rests");
            Ok(())
        })?;
        self.at_rest()
    }

    /// A field of its memory in MiB.
    pub fn memory(&self, field: &str) -> Result<f64> {
        memory_of(self.pid, field)
    }

    /// Its metrics, in text.
    pub fn metrics(&self) -> Result<String> {
        inside(self.namespace(), || {
            let mut stream =
                TcpStream::connect("127.0.0.1:9820").context("connect to the agent's metrics")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _status = self.node.stop_agent();
    }
}

/// The agent's line of log, once a start.
const CONVERGED: &str = "\"converged\"";
