//! Another version of the agents, and back, under traffic; and an agent that starts before kube-proxy.

use anyhow::{Result, ensure};
use wg_overlay_e2e::cluster::Cluster;
use wg_overlay_e2e::suite::{Case, skip};

use crate::common::{AGENT, OURS, agent, cluster, full, victim};
use crate::restarts::lossless;

const IMAGE: &str = "ghcr.io/wg-overlay/wg-overlay";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("an_upgrade_and_its_rollback_lose_no_packet", &[], upgrade),
        Case::new("an_agent_starts_before_kube_proxy", &["timeout"], before_kube_proxy),
    ]
}

fn upgrade() -> Result<()> {
    let Some(tag) = std::env::var("WG_OVERLAY_PREVIOUS_TAG").ok().filter(|tag| !tag.is_empty()) else {
        return skip("WG_OVERLAY_PREVIOUS_TAG names no image of an earlier version on the nodes");
    };
    lossless("a rollback to the earlier version", |cluster, _| roll_to(cluster, &tag))?;
    lossless("an upgrade from the earlier version", |cluster, _| roll_to(cluster, "dev"))
}

fn roll_to(cluster: &Cluster, tag: &str) -> Result<()> {
    let (name, image) = (format!("daemonset/{AGENT}"), format!("agent={IMAGE}:{tag}"));
    cluster.kubectl(&["-n", OURS, "set", "image", &name, &image])?;
    cluster.await_rollout(OURS, AGENT)
}

fn before_kube_proxy() -> Result<()> {
    if !full() {
        return skip("only with WG_OVERLAY_E2E_FULL=1");
    }
    let cluster = cluster()?;
    let node = victim(&cluster)?;
    let config = |jq: &str| cluster.kubectl(&["-n", OURS, "get", "configmap", "wg-overlay", "-o", jq]);
    let before = config("jsonpath={.data.config\\.yaml}")?;
    configure(&cluster, &format!("{before}\napiServer: https://172.30.0.1:6443\n"))?;
    let result = without_services(&cluster, &node);
    configure(&cluster, &before)?;
    cluster.harness(&["start", "kube-proxy", &node])?;
    result
}

fn without_services(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.harness(&["stop", "kube-proxy", node])?;
    cluster.bash(node, "for family in ip ip6; do nft delete table $family kube-proxy; done")?;
    let reached = cluster.bash(node, "timeout 2 bash -c 'exec 3<>/dev/tcp/10.96.0.1/443'");
    ensure!(reached.is_err(), "the API server's service is reached without kube-proxy");
    let before = agent(cluster, node)?.pod;
    cluster.kubectl(&["-n", OURS, "delete", "pod", &before])?;
    cluster.eventually(120, "the agent is ready without kube-proxy", || {
        let now = agent(cluster, node)?;
        ensure!(now.pod != before && now.ready, "{}", now.pod);
        Ok(())
    })
}

fn configure(cluster: &Cluster, text: &str) -> Result<()> {
    let patch = serde_json::json!({ "data": { "config.yaml": text } }).to_string();
    cluster.kubectl(&["-n", OURS, "patch", "configmap", "wg-overlay", "--type=merge", "-p", &patch]).map(drop)
}
