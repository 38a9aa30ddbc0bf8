//! From another pod network to ours, node by node, as docs/install.md says: at each step every pod reaches every other.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::cluster::{Cluster, Pod};
use wg_overlay_e2e::lab::run;
use wg_overlay_e2e::suite::{Case, skip};

use crate::common::{AGENT, OURS, cluster, full};
use crate::installation::{DEVICE, detach_everything, install, uninstall};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_bridge_network_is_replaced_node_by_node", &[], bridge),
        Case::new("the_go_originals_network_is_replaced_node_by_node", &["wg"], original),
    ]
}

/// What the pods were attached by before.
struct Former {
    kind: &'static str,
    /// The addresses of a pod that others reach.
    families: usize,
    values: &'static [&'static str],
}

fn bridge() -> Result<()> {
    migrate(&Former { kind: "plain", families: 2, values: &["config.failClosed=false"] })
}

fn original() -> Result<()> {
    const VALUES: &[&str] = &["legacyAnnotations=true", "config.overlayCIDRs={100.64.0.0/16}"];
    migrate(&Former { kind: "original", families: 1, values: VALUES })
}

fn migrate(former: &Former) -> Result<()> {
    if !full() {
        return skip("only with WG_OVERLAY_E2E_FULL=1");
    }
    let cluster = cluster()?;
    cluster.kubectl(&["-n", OURS, "delete", "daemonset", AGENT, DEVICE])?;
    detach_everything(&cluster)?;
    uninstall(&cluster)?;
    let result = node_by_node(&cluster, former);
    for node in cluster.nodes()? {
        // What a failed run left, so that the next case finds the cluster as it was.
        let _gone = former_network(&cluster, &[former.kind, "leave", &node]);
        cluster.kubectl(&["uncordon", &node])?;
        cluster.kubectl(&["annotate", "node", &node, "wireguard-publickey-", "wireguard-ip-"])?;
    }
    install(&cluster)?;
    cluster.kubectl(&["label", "nodes", "--all", "wg-overlay-"])?;
    result
}

fn node_by_node(cluster: &Cluster, former: &Former) -> Result<()> {
    former_network(cluster, &[former.kind, "up"])?;
    let nodes = cluster.nodes()?;
    nodes.iter().try_for_each(|node| cluster.await_ready(node))?;
    let mut pods = Vec::new();
    for node in &nodes {
        pods.push(Pod::start(cluster, &format!("before-{node}"), node, &["pause"])?);
    }
    all_talk(cluster, &pods, former)?;

    let values = [former.values, &["nodeSelector.wg-overlay=yes", "image.tag=dev"]].concat();
    cluster.kubectl_with(&["apply", "-f", "-"], &rendered(&values)?)?;
    for node in &nodes {
        let words = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"];
        cluster.kubectl(&[&["drain", node.as_str()], words.as_slice()].concat())?;
        former_network(cluster, &[former.kind, "leave", node])?;
        cluster.kubectl(&["label", "node", node, "wg-overlay=yes"])?;
        cluster.eventually(180, &format!("{node} has our network"), || {
            cluster.on(node, &["sh", "-c", "ls /etc/cni/net.d | grep wg-overlay"])
        })?;
        cluster.await_ready(node)?;
        cluster.kubectl(&["uncordon", node])?;
        if former.kind == "original" {
            await_original_annotations(cluster, node)?;
            former_network(cluster, &[former.kind, "sync"])?;
        }
        pods.retain(|pod| pod.node != *node);
        pods.push(Pod::start(cluster, &format!("after-{node}"), node, &["pause"])?);
        all_talk(cluster, &pods, former).with_context(|| format!("after {node} was moved"))?;
        println!("  {node} is moved: {} directions pass", pods.len() * (pods.len() - 1) * former.families);
    }

    cluster.kubectl_with(&["apply", "-f", "-"], &rendered(&["image.tag=dev"])?)?;
    cluster.await_rollout(OURS, AGENT)?;
    all_talk(cluster, &pods, &Former { families: 2, ..*former }).context("with the defaults at the end")
}

fn await_original_annotations(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.eventually(60, &format!("{node} has annotations that the original reads"), || {
        let found = cluster.get(&["node", node])?;
        let annotations = &found["metadata"]["annotations"];
        let same = annotations["wireguard-publickey"] == annotations["wg-overlay.io/public-key"];
        ensure!(same && annotations["wireguard-publickey"].is_string(), "{annotations}");
        Ok(())
    })
}

fn all_talk(cluster: &Cluster, pods: &[Pod], former: &Former) -> Result<()> {
    for from in pods {
        for to in pods.iter().filter(|to| to.node != from.node) {
            for ip in to.ips.iter().take(former.families) {
                let what = format!("{} reaches {} at {ip}", from.name, to.name);
                cluster.eventually(60, &what, || from.bash_in_network(&format!("ping -c 1 -W 2 {ip}")))?;
            }
        }
    }
    Ok(())
}

fn rendered(values: &[&str]) -> Result<String> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut command = Command::new(deploy.join("helm"));
    command.args(["template", "wg-overlay"]).arg(deploy.join("chart/wg-overlay")).args(["--namespace", OURS]);
    command.args(values.iter().flat_map(|value| ["--set", value]));
    let namespace =
        std::fs::read_to_string(deploy.join("namespace.yaml")).context("deploy/namespace.yaml")?;
    Ok(format!("{namespace}\n{}", run(&mut command)?))
}

fn former_network(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/former-network");
    run(Command::new(script).env("WG_OVERLAY_CLUSTER", cluster.name()).args(words))
}
