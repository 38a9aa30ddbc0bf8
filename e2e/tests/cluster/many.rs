//! Two hundred pods at once: an address each, none twice, and nothing left of them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::cluster::{Cluster, NAMESPACE};
use wg_overlay_e2e::suite::Case;

use crate::common::{cluster, workers};

const PODS: usize = 200;

pub fn cases() -> Vec<Case> {
    vec![Case::new("two_hundred_pods_at_once_have_an_address_each_and_leave_none", &[], two_hundred)]
}

fn two_hundred() -> Result<()> {
    let cluster = cluster()?;
    let nodes = workers(&cluster)?;
    cluster.send(
        "apply",
        &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }),
    )?;
    let before = attached(&cluster, &nodes)?;
    let pods: Vec<Value> = (0..PODS).map(|n| pod(n, nodes.get(n % nodes.len()))).collect();
    let result = cluster
        .send("create", &json!({ "apiVersion": "v1", "kind": "List", "items": pods }))
        .and_then(|_| addresses_are_unique(&cluster));
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pods", "-l", "app=many", "--timeout=600s"])?;
    result?;
    cluster.eventually(120, "nothing is left of the pods", || {
        let after = attached(&cluster, &nodes)?;
        ensure!(after == before, "before: {before:?}\nafter: {after:?}");
        Ok(())
    })
}

fn addresses_are_unique(cluster: &Cluster) -> Result<()> {
    let wait = ["-n", NAMESPACE, "wait", "pods", "-l", "app=many", "--for=condition=Ready", "--timeout=600s"];
    cluster.kubectl(&wait)?;
    let mut seen = BTreeSet::new();
    let mut ready = 0;
    for pod in cluster.list(&["pods", "--all-namespaces"])? {
        let own = pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running";
        let ips = pod["status"]["podIPs"].as_array().filter(|_| own).cloned().unwrap_or_default();
        if pod["metadata"]["labels"]["app"] == "many" {
            ensure!(ips.len() == 2, "{} has {ips:?}", pod["metadata"]["name"]);
            ready += 1;
        }
        for ip in ips {
            let ip = ip["ip"].as_str().context("an address")?.to_owned();
            ensure!(seen.insert(ip.clone()), "{ip} was given to {} and to another", pod["metadata"]["name"]);
        }
    }
    ensure!(ready == PODS, "{ready} of {PODS} pods");
    Ok(())
}

/// The addresses that are taken and the pods' links on each node.
fn attached(cluster: &Cluster, nodes: &[String]) -> Result<Vec<String>> {
    let list = "ls /run/wg-overlay/ipam/addresses /run/wg-overlay/ipam/holders; ls /sys/class/net | grep ^wgp || true";
    nodes.iter().map(|node| cluster.bash(node, list)).collect()
}

fn pod(number: usize, node: Option<&String>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("many-{number}"), "namespace": NAMESPACE, "labels": { "app": "many" } },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{ "name": "pause", "image": "registry.k8s.io/pause:3.10.1" }],
        },
    })
}
