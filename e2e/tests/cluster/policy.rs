//! What a cluster's administrator is told, and what a thief of an agent's token can do.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::cluster::{Cluster, NAMESPACE, Pod};
use wg_overlay_e2e::lab::{product, run};
use wg_overlay_e2e::suite::Case;

use crate::common::{AGENT, OURS, agent, cluster, condition};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("every_node_says_that_its_network_is_available", &[], network_is_available),
        Case::new("status_has_a_line_for_every_node", &[], status_of_the_cluster),
        Case::new("policies_that_are_not_enforced_are_told", &[], not_enforced),
        Case::new("a_stolen_token_writes_no_more_than_its_own_nodes_annotations", &["curl"], stolen_token),
    ]
}

fn network_is_available() -> Result<()> {
    let cluster = cluster()?;
    for node in cluster.list(&["nodes"])? {
        let found = condition(&node, "NetworkUnavailable");
        let expected = found["status"] == "False" && found["reason"] == "WgOverlayIsUp";
        ensure!(expected, "{}: {found}", node["metadata"]["name"]);
    }
    Ok(())
}

/// A kubeconfig of the administrator that programs may have as a file.
fn kubeconfig(cluster: &Cluster) -> Result<std::path::PathBuf> {
    let file = std::env::temp_dir().join(format!("wgo-e2e-kubeconfig-{}", std::process::id()));
    std::fs::write(&file, cluster.kubectl(&["config", "view", "--raw", "--flatten"])?)?;
    Ok(file)
}

fn status_of_the_cluster() -> Result<()> {
    let cluster = cluster()?;
    let file = kubeconfig(&cluster)?;
    let mut command = cluster.network("cp").command(product("wg-overlay")?);
    let said = run(command.args(["status", "--cluster"]).env("KUBECONFIG", &file));
    std::fs::remove_file(file)?;
    let said = said?;
    for node in cluster.nodes()? {
        let lines = said.lines().filter(|line| line.split_whitespace().next() == Some(&node)).count();
        ensure!(lines == 1, "{lines} lines of {node} in\n{said}");
    }
    Ok(())
}

fn not_enforced() -> Result<()> {
    let cluster = cluster()?;
    // A pod, as one that has a namespace.
    let pod = Pod::start(&cluster, "policed", "n1", &["pause"])?;
    cluster.send(
        "apply",
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "deny", "namespace": NAMESPACE },
            "spec": { "podSelector": {} },
        }),
    )?;
    let told = told(&cluster);
    cluster.kubectl(&["-n", NAMESPACE, "delete", "networkpolicy", "deny"])?;
    // An agent that starts looks at once: without policies again, it says no more of them.
    restart_agent(&cluster, "n1")?;
    drop(pod);
    told
}

fn told(cluster: &Cluster) -> Result<()> {
    restart_agent(cluster, "n1")?;
    cluster.eventually(60, "an Event says that policies are not enforced", || {
        let events =
            cluster.list(&["events", "-A", "--field-selector", "reason=NetworkPolicyNotEnforced"])?;
        ensure!(events.iter().any(|event| event.to_string().contains("n1")), "{} events", events.len());
        Ok(())
    })?;
    let pod = agent(cluster, "n1")?.pod;
    // It ends with 1 while something is degraded.
    let script = "kubectl -n \"$0\" exec \"$1\" -c agent -- wg-overlay status || true";
    let said =
        cluster.on("cp", &["env", &kubeconfig_variable(cluster)?, "bash", "-c", script, OURS, &pod])?;
    ensure!(said.contains("NetworkPolicies exist and are not enforced"), "{said}");
    Ok(())
}

fn kubeconfig_variable(cluster: &Cluster) -> Result<String> {
    Ok(format!("KUBECONFIG={}", kubeconfig(cluster)?.display()))
}

fn restart_agent(cluster: &Cluster, node: &str) -> Result<()> {
    let before = agent(cluster, node)?.pod;
    cluster.kubectl(&["-n", OURS, "delete", "pod", &before])?;
    cluster.eventually(120, &format!("another agent runs on {node}"), || {
        let now = agent(cluster, node)?;
        ensure!(now.pod != before && now.ready, "{}", now.pod);
        Ok(())
    })?;
    cluster.await_rollout(OURS, AGENT)
}

fn stolen_token() -> Result<()> {
    let cluster = cluster()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tests/policy/run");
    let said = cluster.on("cp", &["env", &kubeconfig_variable(&cluster)?, script])?;
    let last = said.lines().last().context("the script said nothing")?;
    ensure!(last.ends_with("0 failed"), "{said}");
    println!("  {last}");
    Ok(())
}
