//! The WireGuard port is another's.

use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use wg_overlay_e2e::lab::{Node, eventually, helper};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, ping_all, pods, status, with_agents};
use crate::kernel::{await_kernel, kernel};
use crate::look::{await_peer, key_of};

/// The port that the prober listens on: it serves as the other program.
const PORT: u16 = 7007;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_listen_port_of_another_is_named_and_taken_when_free", &["ping", "wg"], taken),
        Case::new("a_port_taken_while_the_device_is_gone_is_named_and_taken_back", &["ping", "wg"], retaken),
    ]
}

fn taken() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let second = lab.node(2)?;
        second.stop_agent()?;
        let other = Other::start(second)?;
        start_agent(second)?;
        await_named(second)?;
        drop(other);
        await_taken(second)?;
        let key = key_of(lab, "n2")?;
        await_peer(lab.node(1)?, &key, "n2's port follows", |peer| peer.endpoint.ends_with(":7007"))?;
        ping_all(&all)
    })
}

/// The agent stands still while somebody deletes the device and another takes its port.
fn retaken() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let second = lab.node(2)?;
        second.stop_agent()?;
        start_agent(second)?;
        await_taken(second)?;
        ping_all(&all)?;
        let healthy = kernel(second);
        let agent =
            second.agent_pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no agent")?;
        kill_process(agent, Signal::STOP)?;
        second.exec("ip", ["link", "del", "wgo0"])?;
        eventually(PATIENCE, "the port is free", || {
            ensure!(!is_bound(second)?, "the device holds it");
            Ok(())
        })?;
        let other = Other::start(second)?;
        kill_process(agent, Signal::CONT)?;
        await_named(second)?;
        drop(other);
        await_taken(second)?;
        await_kernel(second, &healthy, "a port taken while the device was gone")?;
        ping_all(&all)
    })
}

/// No resync comes to help it, and questions must not put its next try off.
fn start_agent(node: &Node) -> Result<()> {
    node.set_agent_config("listenPort", json!(PORT));
    node.set_agent_config("resyncInterval", json!("1h"));
    node.start_agent(&[])
}

fn await_named(node: &Node) -> Result<()> {
    eventually(PATIENCE, "status names the port and who has it", || {
        let status = status(node)?;
        let problems = status["problems"].to_string();
        ensure!(status["state"] == "Degraded", "{}: {problems}", status["state"]);
        ensure!(problems.contains(&PORT.to_string()) && problems.contains("prober"), "{problems}");
        Ok(())
    })
}

fn await_taken(node: &Node) -> Result<()> {
    eventually(PATIENCE, "the port is taken as soon as it is free", || {
        let status = status(node)?;
        ensure!(status["state"] == "Converged", "{}: {}", status["state"], status["problems"]);
        Ok(())
    })
}

fn is_bound(node: &Node) -> Result<bool> {
    let sockets = node.exec("cat", ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"])?;
    Ok(sockets.contains(&format!(":{PORT:04X} ")))
}

/// A program that holds the port until it is dropped.
struct Other(Child);

impl Other {
    fn start(node: &Node) -> Result<Self> {
        let mut command = node.namespace().command(helper("prober")?);
        let other = Self(
            command.arg("run").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("start prober")?,
        );
        eventually(PATIENCE, "the port is taken", || {
            ensure!(is_bound(node)?, "nobody holds it");
            Ok(())
        })?;
        Ok(other)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}
