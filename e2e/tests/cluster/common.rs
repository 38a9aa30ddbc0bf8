//! What the cases share: the cluster, its workers, whether the long forms are asked for.

use anyhow::{Result, ensure};
use serde_json::Value;
use wg_overlay_e2e::cluster::Cluster;
use wg_overlay_e2e::suite::skip;

/// Where the installation is.
pub const OURS: &str = "wg-overlay";
pub const AGENT: &str = "wg-overlay-agent";

/// The running cluster with a network of ours that works.
pub fn cluster() -> Result<Cluster> {
    let Some(cluster) = Cluster::find() else {
        return skip("no cluster runs: make cluster, or e2e/cluster/cluster up");
    };
    Ok(cluster)
}

/// Whether the long forms are asked for.
pub fn full() -> bool {
    std::env::var_os("WG_OVERLAY_E2E_FULL").is_some()
}

/// The nodes without a taint.
pub fn workers(cluster: &Cluster) -> Result<Vec<String>> {
    let nodes: Vec<String> = cluster.nodes()?.into_iter().filter(|node| node != "cp").collect();
    ensure!(nodes.len() >= 2, "the cluster has the workers {nodes:?}; two at least are needed");
    Ok(nodes)
}

/// The last worker: the one that dies in the cases.
pub fn victim(cluster: &Cluster) -> Result<String> {
    Ok(workers(cluster)?.pop().unwrap_or_default())
}

/// All nodes but one.
pub fn without(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    Ok(cluster.nodes()?.into_iter().filter(|name| name != node).collect())
}

/// A condition of a Node.
pub fn condition(node: &Value, kind: &str) -> Value {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|c| c["type"] == kind).cloned().unwrap_or_default()
}

/// The container of a node's agent.
pub struct Agent {
    pub pod: String,
    /// Without the runtime's prefix.
    pub container: String,
    pub restarts: u64,
    pub last_state: Value,
    pub ready: bool,
}

/// The agent of a node as the API shows it.
pub fn agent(cluster: &Cluster, node: &str) -> Result<Agent> {
    let field = format!("spec.nodeName={node}");
    let label = "app.kubernetes.io/component=agent";
    let pods = cluster.list(&["-n", OURS, "pods", "-l", label, "--field-selector", &field])?;
    let [pod] = pods.as_slice() else { anyhow::bail!("node {node} has {} agents", pods.len()) };
    let status = &pod["status"]["containerStatuses"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Agent {
        pod: text(&pod["metadata"]["name"]),
        container: text(&status["containerID"]).rsplit('/').next().unwrap_or_default().to_owned(),
        restarts: status["restartCount"].as_u64().unwrap_or_default(),
        last_state: status["lastState"].clone(),
        ready: status["ready"] == true,
    })
}
