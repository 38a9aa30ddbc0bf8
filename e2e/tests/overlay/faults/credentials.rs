//! The cluster's authority and the agents' credentials are rotated: no packet is lost, and agents go on without a restart.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Authority, Lab, LabConfig, Node, Prober, TLS_PORT, eventually};
use wg_overlay_e2e::suite::Case;

use super::api::changes_arrive;
use crate::cluster::{PATIENCE, await_peers, pods, status};
use crate::look::{ensure_lossless, probing, wg_peers};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash", "openssl"];
    vec![
        Case::new("what_a_kubeconfig_holds_is_rotated", needs, || rotated(&IN_KUBECONFIG)),
        Case::new("files_that_a_kubeconfig_names_are_rotated", needs, || rotated(&IN_FILES)),
        Case::new("a_service_accounts_files_are_rotated", needs, || rotated(&SERVICE_ACCOUNT)),
    ]
}

/// Where an agent has its authority and token from.
struct Way {
    authority: &'static str,
    token: &'static str,
    give: fn(&Node, &str, &str) -> Result<()>,
    start: fn(&Node) -> Result<()>,
}

const KUBECONFIG: &str = "/etc/wg-overlay/kubeconfig";
const IN_KUBECONFIG: Way = Way {
    authority: KUBECONFIG,
    token: KUBECONFIG,
    give: |node, authority, token| {
        let data = json!({ "certificate-authority-data": base64(authority) });
        write(node, KUBECONFIG, &kubeconfig(data, &json!({ "token": token })))
    },
    start: |node| node.start_agent(&[]),
};

const IN_FILES: Way = Way {
    authority: "/etc/wg-overlay/ca.crt",
    token: "/etc/wg-overlay/token",
    give: |node, authority, token| {
        write(node, IN_FILES.authority, authority)?;
        write(node, IN_FILES.token, token)?;
        let named = json!({ "certificate-authority": "ca.crt" });
        write(node, KUBECONFIG, &kubeconfig(named, &json!({ "tokenFile": IN_FILES.token })))
    },
    start: |node| node.start_agent(&[]),
};

const SERVICE_ACCOUNT: Way = Way {
    authority: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
    token: "/var/run/secrets/kubernetes.io/serviceaccount/token",
    give: |node, authority, token| {
        // /var/run leads to the node's /run, and here to this host's
        let folder = "/run/secrets/kubernetes.io/serviceaccount";
        fs::create_dir_all(node.path(folder))?;
        write(node, &format!("{folder}/namespace"), "wg-overlay")?;
        write(node, &format!("{folder}/ca.crt"), authority)?;
        write(node, &format!("{folder}/token"), token)
    },
    start: Node::start_agent_with_service_account,
};

/// As a kubelet replaces a file: whoever reads sees the old one or the new.
fn write(node: &Node, path: &str, text: &str) -> Result<()> {
    let new = node.path(format!("{path}.new"));
    fs::write(&new, text)?;
    fs::rename(new, node.path(path)).with_context(|| format!("replace {path}"))
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(text)
}

fn kubeconfig(mut cluster: Value, user: &Value) -> String {
    cluster["server"] = json!(format!("https://172.30.0.1:{TLS_PORT}"));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "tls",
        "clusters": [{ "name": "lab", "cluster": cluster }],
        "users": [{ "name": "lab", "user": user }],
        "contexts": [{ "name": "tls", "context": { "cluster": "lab", "user": "lab" } }],
    });
    config.to_string()
}

fn rotated(way: &Way) -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        let [first, second, third] = ["first", "second", "third"].map(|name| lab.authority(name));
        let (first, second, third) = (first?, second?, third?);
        lab.certify(&first)?;
        give(lab, way, &first, "a")?;
        lab.api().set_faults(&json!({ "token": "a" }))?;
        lab.nodes().iter().try_for_each(way.start)?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1))?;
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;

        give(lab, way, &first, "b")?;
        lab.api().set_faults(&json!({ "token": "b", "cutWatches": true }))?;
        goes_on(lab, &mut prober).context("the token is rotated")?;

        lab.api().set_faults(&json!({ "token": "c", "cutWatches": true }))?;
        says(lab, &format!("refuses the credentials in {} (401", way.token))?;
        give(lab, way, &first, "c")?;
        goes_on(lab, &mut prober).context("the token is withdrawn before there is another")?;

        give(lab, way, &second, "c")?;
        lab.certify(&second)?;
        lab.api().clear_requests()?;
        publishes(lab)?;
        let watches = |r: &Value| r["uri"].as_str().is_some_and(|uri| uri.contains("watch="));
        ensure!(
            !lab.api().requests()?.iter().any(watches),
            "a watch was opened, and the old one was healthy"
        );
        lab.api().set_faults(&json!({ "cutWatches": true }))?;
        goes_on(lab, &mut prober).context("the authority is rotated")?;

        lab.certify(&third)?;
        take_back_mtu(lab)?;
        is_a_problem(lab, way)?;
        lab.api().set_faults(&json!({ "cutWatches": true }))?;
        let text =
            format!("signed by no authority in {}: put the cluster's CA certificate there", way.authority);
        says(lab, &text)?;
        give(lab, way, &third, "c")?;
        goes_on(lab, &mut prober)
            .context("the server has its new certificate before the agents know its authority")
    })
}

fn give(lab: &Lab, way: &Way, authority: &Authority, token: &str) -> Result<()> {
    lab.nodes().iter().try_for_each(|node| (way.give)(node, authority.certificate(), token))
}

/// Both agents follow the Nodes and publish, and no packet was lost.
fn goes_on(lab: &Lab, prober: &mut Prober) -> Result<()> {
    changes_arrive(lab)?;
    publishes(lab)?;
    for node in lab.nodes() {
        ensure!(wg_peers(node)? == 1, "{} has {} peers", node.name(), wg_peers(node)?);
    }
    ensure_lossless(prober, "the rotation")
}

/// An annotation that changes no way of a packet.
const MTU: &str = "wg-overlay.io/mtu";

fn take_back_mtu(lab: &Lab) -> Result<()> {
    let take = |node: &Node| lab.api().annotate(node.name(), &json!({ (MTU): null })).map(drop);
    lab.nodes().iter().try_for_each(take)
}

fn publishes(lab: &Lab) -> Result<()> {
    take_back_mtu(lab)?;
    for node in lab.nodes() {
        eventually(PATIENCE, &format!("{} publishes again", node.name()), || {
            lab.api().annotation(node.name(), MTU)?.context("no MTU").map(drop)
        })?;
    }
    Ok(())
}

fn is_a_problem(lab: &Lab, way: &Way) -> Result<()> {
    for node in lab.nodes() {
        eventually(PATIENCE, &format!("{} says what is wrong", node.name()), || {
            let problems = status(node)?["problems"].to_string();
            ensure!(problems.contains(&format!("signed by no authority in {}", way.authority)), "{problems}");
            Ok(())
        })?;
    }
    Ok(())
}

fn says(lab: &Lab, text: &str) -> Result<()> {
    for node in lab.nodes() {
        eventually(PATIENCE, &format!("{} logs {text}", node.name()), || {
            let log = node.agent_log();
            let said = log.lines().any(|line| line.contains("watching Nodes failed") && line.contains(text));
            ensure!(said, "it does not");
            Ok(())
        })?;
    }
    Ok(())
}
