//! Nodes with agents that are converged, a pod on each, and what `status` says.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Lab, LabConfig, Node, Pod, eventually, product};

/// How long anything may take before a case fails: the machine may be an emulated one.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A lab of nodes whose agents are converged.
///
/// # Errors
/// The lab's own, an agent that doesn't converge, or the body's.
pub fn with_agents(nodes: u8, body: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    with_config(LabConfig { nodes, ..LabConfig::default() }, body)
}

/// Likewise, with another configuration of the lab.
///
/// # Errors
/// As `with_agents`.
pub fn with_config(config: LabConfig, body: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    Lab::test(config, |lab| {
        start_agents(lab)?;
        body(lab)
    })
}

/// Starts an agent on every node, and waits until all are converged.
///
/// # Errors
/// One isn't within `PATIENCE`.
pub fn start_agents(lab: &Lab) -> Result<()> {
    lab.nodes().iter().try_for_each(|node| node.start_agent(&[]))?;
    lab.nodes().iter().try_for_each(|node| await_peers(node, lab.nodes().len() - 1))
}

/// The status of a node's agent as a machine reads it. It exits 1 while something is degraded, and prints all the same.
///
/// # Errors
/// The agent doesn't answer.
pub fn status(node: &Node) -> Result<Value> {
    let mut command = node.namespace().command(product("wg-overlay")?);
    let output = command.args(["status", "--output", "json"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).with_context(|| format!("status on {}: {said}", node.name()))
}

/// Waits until a node is converged with so many peers programmed.
///
/// # Errors
/// It isn't within `PATIENCE`.
pub fn await_peers(node: &Node, peers: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{} converges with {peers} peers", node.name()), || {
        let status = status(node)?;
        let programmed = programmed(&status).len();
        ensure!(
            programmed == peers && status["cni"]["ready"] == true && status["state"] != "Reconciling",
            "{programmed} peers, state {}, problems {}",
            status["state"],
            status["problems"]
        );
        Ok(())
    })
}

/// The names of the peers that a status shows as programmed.
#[must_use]
pub fn programmed(status: &Value) -> Vec<String> {
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let programmed = peers.iter().filter(|p| !p["publicKey"].is_null());
    programmed.filter_map(|p| p["node"].as_str().map(str::to_owned)).collect()
}

/// A pod on each node.
///
/// # Errors
/// A plugin refuses.
pub fn pods(lab: &Lab) -> Result<Vec<Pod>> {
    lab.nodes().iter().map(|node| node.add_pod("p")).collect()
}

/// One ping from each pod to each other, in both families.
///
/// # Errors
/// One is not answered within `PATIENCE`.
pub fn ping_all(pods: &[Pod]) -> Result<()> {
    for from in pods {
        for to in pods.iter().filter(|to| to.ips() != from.ips()) {
            for ip in to.ips() {
                eventually(PATIENCE, &format!("{from} reaches {to} at {ip}"), || from.ping(*ip))?;
            }
        }
    }
    Ok(())
}
