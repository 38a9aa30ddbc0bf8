//! The WireGuard port is another's.

use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{Node, eventually, helper};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, ping_all, pods, status, with_agents};
use crate::look::{await_peer, key_of};

/// The port that the prober listens on: it serves as the other program.
const PORT: u16 = 7007;

pub fn cases() -> Vec<Case> {
    vec![Case::new("a_listen_port_of_another_is_named_and_taken_when_free", &["ping", "wg"], taken)]
}

fn taken() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let second = lab.node(2)?;
        second.stop_agent()?;
        let other = Other::start(second)?;
        second.set_agent_config("listenPort", json!(PORT));
        // No resync comes to help, and the questions below must not put the next try off.
        second.set_agent_config("resyncInterval", json!("1h"));
        second.start_agent(&[])?;
        eventually(PATIENCE, "status names the port and who has it", || {
            let status = status(second)?;
            let problems = status["problems"].to_string();
            ensure!(status["state"] == "Degraded", "{}: {problems}", status["state"]);
            ensure!(problems.contains(&PORT.to_string()) && problems.contains("prober"), "{problems}");
            Ok(())
        })?;
        drop(other);
        eventually(PATIENCE, "the port is taken as soon as it is free", || {
            let status = status(second)?;
            ensure!(status["state"] == "Converged", "{}: {}", status["state"], status["problems"]);
            Ok(())
        })?;
        let key = key_of(lab, "n2")?;
        await_peer(lab.node(1)?, &key, "n2's port follows", |peer| peer.endpoint.ends_with(":7007"))?;
        ping_all(&all)
    })
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
            let sockets = node.exec("cat", ["/proc/thread-self/net/udp6"])?;
            ensure!(sockets.contains(&format!(":{PORT:04X} ")), "{sockets}");
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
