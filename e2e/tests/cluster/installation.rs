//! Removal as docs/install.md says, and installation again: a node is as before, and its Node object too.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::cluster::{Cluster, NAMESPACE};
use wg_overlay_e2e::suite::Case;

use crate::common::{AGENT, OURS, cluster, condition};

pub const DEVICE: &str = "wg-overlay-device";
const CLEANUP: &str = "wg-overlay-cleanup";

pub fn cases() -> Vec<Case> {
    vec![Case::new("an_uninstalled_node_is_as_it_was", &[], uninstalled)]
}

fn uninstalled() -> Result<()> {
    let cluster = cluster()?;
    let result = refuses_then_removes(&cluster);
    install(&cluster)?;
    result
}

fn refuses_then_removes(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["-n", OURS, "delete", "daemonset", AGENT, DEVICE])?;
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest("uninstall.yaml")?)?;
    cluster.eventually(120, "a node with pods refuses", || {
        let label = "app.kubernetes.io/component=cleanup";
        let said = cluster.kubectl(&["-n", OURS, "logs", "-l", label, "--prefix", "--tail=20"])?;
        ensure!(said.contains("pods are attached"), "{said}");
        Ok(())
    })?;
    detach_everything(cluster)?;
    uninstall(cluster)?;
    nothing_is_left(cluster)
}

/// Cleans nodes without agents and pods, and deletes every object of ours.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest("uninstall.yaml")?)?;
    cluster.await_rollout(OURS, CLEANUP)?;
    for file in ["uninstall.yaml", "wg-overlay.yaml"] {
        cluster.kubectl_with(&["delete", "--ignore-not-found", "-f", "-"], &manifest(file)?)?;
    }
    Ok(())
}

/// Ends every pod that has an address of ours.
pub fn detach_everything(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s"])?;
    cluster.kubectl(&["-n", "kube-system", "scale", "deployment", "coredns", "--replicas=0"])?;
    cluster.eventually(300, "no pod has an address of its own", || {
        let pods = cluster.list(&["pods", "-A"])?;
        let held = pods.iter().filter(|pod| pod["spec"]["hostNetwork"] != true);
        let held: Vec<_> = held.map(|pod| pod["metadata"]["name"].to_string()).collect();
        ensure!(held.is_empty(), "{}", held.join(", "));
        Ok(())
    })
}

fn nothing_is_left(cluster: &Cluster) -> Result<()> {
    // Folders stay, empty; the image's own files are containerd's.
    const LEFT: &str = "
        ip -br link | grep -E '^wg[op]' || true
        ip route show table all proto 87; ip -6 route show table all proto 87
        nft list tables | grep wg-overlay || true
        nft list ruleset | grep wg-overlay || true
        find /run /etc /opt /var/lib \\( -path /var/lib/containerd -o -path /run/containerd -o -path /var/lib/kubelet \\) -prune \\
          -o \\( -name '*wg-overlay*' -o -name 'wgo*' \\) ! -type d -print
        find /run/wg-overlay /run/wireguard /var/lib/wg-overlay ! -type d 2> /dev/null || true";
    for node in cluster.list(&["nodes"])? {
        let name = node["metadata"]["name"].as_str().context("a name")?;
        let left = cluster.bash(name, LEFT)?;
        ensure!(left.is_empty(), "left on {name}:\n{left}");
        let annotations = node["metadata"]["annotations"].to_string();
        ensure!(!annotations.contains("wg-overlay"), "{name} carries {annotations}");
        let found = condition(&node, "NetworkUnavailable");
        ensure!(found.is_null(), "{name} carries {found}");
    }
    for kind in ["clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "namespaces"] {
        let names = cluster.kubectl(&["get", kind, "-o", "name"])?;
        ensure!(!names.contains("/wg-overlay\n") && !names.contains("/wg-overlay-agent"), "left: {names}");
    }
    Ok(())
}

/// As the harness installs it.
pub fn install(cluster: &Cluster) -> Result<()> {
    cluster.eventually(120, "the namespace is gone or stays", || {
        let phase = cluster.kubectl(&[
            "get",
            "namespace",
            OURS,
            "--ignore-not-found",
            "-o",
            "jsonpath={.status.phase}",
        ])?;
        ensure!(phase != "Terminating", "{phase}");
        Ok(())
    })?;
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest("wg-overlay.yaml")?)?;
    cluster.await_rollout(OURS, AGENT)?;
    cluster.nodes()?.iter().try_for_each(|node| cluster.await_ready(node))?;
    cluster.kubectl(&["-n", "kube-system", "scale", "deployment", "coredns", "--replicas=2"])?;
    let wait = ["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=180s"];
    cluster.kubectl(&wait).map(drop)
}

/// A rendered manifest, with the image of this checkout.
pub fn manifest(file: &str) -> Result<String> {
    const IMAGE: &str = "ghcr.io/wg-overlay/wg-overlay:";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().map(|line| match line.split_once(IMAGE) {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c != '"' && c != ' ');
            format!("{before}{IMAGE}dev{rest}\n")
        }
        None => format!("{line}\n"),
    });
    Ok(lines.collect())
}
