//! A node before its network works: pods wait, nothing says that they could start.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::cluster::{Cluster, Pod};
use wg_overlay_e2e::suite::Case;

use crate::common::{AGENT, OURS, cluster, condition, victim};

/// The file whose presence makes a runtime attach pods.
const CONFLIST: &str = "/etc/cni/net.d/10-wg-overlay.conflist";
const STATUS: &str = "CNI_COMMAND=STATUS CNI_PATH=/opt/cni/bin /opt/cni/bin/wg-overlay-cni";

pub fn cases() -> Vec<Case> {
    vec![Case::new("a_pod_that_comes_before_the_network_waits_for_it", &[], waits)]
}

fn waits() -> Result<()> {
    let cluster = cluster()?;
    let node = victim(&cluster)?;
    keep_agent_off(&cluster, Some(&node))?;
    let result = before_and_after(&cluster, &node);
    keep_agent_off(&cluster, None)?;
    cluster.await_ready(&node)?;
    cluster.await_rollout(OURS, AGENT)?;
    result
}

fn before_and_after(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.harness(&["node-down", node])?;
    cluster.kubectl(&["delete", "node", node])?;
    cluster.harness(&["node-up", node])?;
    // It has been here before: the file outlives a reboot, the network does not.
    let list: Value = serde_json::from_str(&cluster.on(node, &["cat", CONFLIST])?)?;
    let config = json!({ "cniVersion": "1.1.0", "name": list["name"], "type": "wg-overlay-cni" });
    let status = |node: &str| cluster.bash(node, &format!("echo '{config}' | {STATUS} || true"));
    let said = status(node)?;
    ensure!(said.contains("\"code\":50") || said.contains("\"code\": 50"), "STATUS after a boot: {said}");
    // As a node that joins.
    cluster.on(node, &["rm", CONFLIST])?;
    let pod = Pod::create(cluster, "early", node, &["pause"])?;
    cluster.eventually(120, &format!("{node} waits for its network"), || {
        let object = cluster.get(&["node", node])?;
        let ready = condition(&object, "Ready");
        let why = ready["message"].as_str().unwrap_or_default();
        ensure!(ready["status"] == "False" && why.contains("NetworkReady=false"), "Ready: {ready}");
        ensure!(
            condition(&object, "NetworkUnavailable")["status"] != "False",
            "the network is called available"
        );
        Ok(())
    })?;
    cluster.eventually(120, "the pod is seen to wait", || {
        let events = cluster.kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].reason}"])?;
        ensure!(events.contains("NetworkNotReady"), "{events}");
        Ok(())
    })?;
    ensure!(cluster.on(node, &["ls", CONFLIST]).is_err(), "the conflist is there before the network");
    keep_agent_off(cluster, None)?;
    cluster.eventually(120, "the conflist appears", || cluster.on(node, &["ls", CONFLIST]))?;
    let said = status(node)?;
    ensure!(!said.contains("\"code\""), "the conflist is there and STATUS says {said}");
    let pod = pod.await_ready()?;
    ensure!(pod.ips.len() == 2, "{:?}", pod.ips);
    let found = condition(&cluster.get(&["node", node])?, "NetworkUnavailable");
    ensure!(found["status"] == "False" && found["reason"] == "WgOverlayIsUp", "{found}");
    Ok(())
}

/// Lets the agents run on all nodes but this one.
fn keep_agent_off(cluster: &Cluster, node: Option<&str>) -> Result<()> {
    let terms = |name: &str| {
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{
            "matchFields": [{ "key": "metadata.name", "operator": "NotIn", "values": [name] }] }] } } })
    };
    let patch = json!({ "spec": { "template": { "spec": { "affinity": node.map(terms) } } } }).to_string();
    let name = format!("daemonset/{AGENT}");
    cluster.kubectl(&["-n", OURS, "patch", &name, "--type=merge", "-p", &patch])?;
    if node.is_some() {
        cluster.await_rollout(OURS, AGENT)?;
    }
    Ok(())
}
