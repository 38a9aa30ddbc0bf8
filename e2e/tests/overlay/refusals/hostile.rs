//! A Node that claims what another holds gets nothing: not at once, not after the observer's agent has started anew,
//! and not where the kernel has forgotten who held it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::Case;

use super::await_event;
use crate::cluster::{PATIENCE, await_peers, ping_all, pods, with_agents, with_config};
use crate::look::{
    KEY, OVERLAY_IPS, await_peer, await_rounds, create_node, key_of, made_up, routes, shown, wg_peer,
};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("a_claim_to_anothers_pod_cidr_moves_nothing", needs, pod_cidr),
        Case::new("a_claim_to_a_part_of_anothers_pod_cidr_moves_nothing", needs, part_of_pod_cidr),
        Case::new("a_claim_to_anothers_overlay_ip_moves_nothing", needs, overlay_ip),
        Case::new("a_claim_over_a_nodes_address_moves_nothing", needs, over_an_address),
        Case::new("a_claim_over_the_api_servers_address_moves_nothing", needs, over_the_api_server),
        Case::new("a_claim_to_every_address_moves_nothing", needs, everything),
        Case::new("a_claim_to_anothers_key_moves_nothing", needs, key),
        Case::new("an_older_nodes_claim_moves_nothing_after_a_reboot", needs, after_a_reboot),
    ]
}

/// Sorts before every honest node: the name decides nothing.
const THIEF: &str = "a-thief";

fn pod_cidr() -> Result<()> {
    robbed(
        |_| Ok(json!({ "spec": { "podCIDRs": ["10.244.2.0/24", "fd00:244:0:2::/64"] } })),
        "DuplicatePodCidr",
    )
}

fn part_of_pod_cidr() -> Result<()> {
    robbed(|_| Ok(json!({ "spec": { "podCIDRs": ["10.244.2.0/28"] } })), "DuplicatePodCidr")
}

fn overlay_ip() -> Result<()> {
    let claim = json!({ "metadata": { "annotations": { (OVERLAY_IPS): "10.244.2.1" } } });
    robbed(|_| Ok(claim), "OverlayIpOutside")
}

fn everything() -> Result<()> {
    robbed(|_| Ok(json!({ "spec": { "podCIDRs": ["0.0.0.0/0", "::/0"] } })), "PodCidrOutside")
}

/// n2 says that it lives in the pod networks too, where no other Node has its PodCIDR yet.
fn over_an_address() -> Result<()> {
    let claim = |lab: &Lab| {
        let mut status = lab.api().node("n2")?["status"].clone();
        let addresses = status["addresses"].as_array_mut().context("n2 has no addresses")?;
        addresses.retain(|a| a["address"].as_str().is_some_and(|ip| !ip.contains(':')));
        addresses.push(json!({ "type": "InternalIP", "address": "fd00:244:0:7::7" }));
        lab.api().patch_status("n2", &json!({ "status": status }))?;
        Ok(json!({ "spec": { "podCIDRs": ["fd00:244:0:7::/64"] } }))
    };
    robbed(claim, "PodCidrOverlaps")
}

/// n1's agent knows the API server by a kubeconfig, which names an address within the pod networks.
fn over_the_api_server() -> Result<()> {
    with_agents(2, |lab| {
        let first = lab.node(1)?;
        first.kill_agent()?;
        first.exec("ip", ["route", "add", "10.244.250.6", "via", "172.30.0.1"])?;
        first.exec(
            "nft",
            ["add table ip e2e; add chain ip e2e out { type nat hook output priority -100; };
              add rule ip e2e out ip daddr 10.244.250.6 dnat to 172.30.0.1"],
        )?;
        let path = first.path("/etc/wg-overlay/kubeconfig");
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, text.replace("172.30.0.1:", "10.244.250.6:"))?;
        first.start_agent(&[])?;
        await_peers(first, 1)?;
        let mut thief = made_up(THIEF, 66);
        merge(&mut thief, &json!({ "spec": { "podCIDRs": ["10.244.250.0/24"] } }));
        thief["metadata"]["annotations"].as_object_mut().context("no annotations")?.remove(OVERLAY_IPS);
        create_node(lab, &thief)?;
        await_refusal(first, "PodCidrOverlaps")?;
        let note = shown(first, THIEF)?["note"].to_string();
        ensure!(note.contains("the API server"), "{note}");
        // it still hears of others
        create_node(lab, &made_up("afterwards", 67))?;
        await_peers(first, 2)
    })
}

/// The thief's Node is as a good one, but for the claim. It is younger than the honest one.
fn robbed(claim: impl FnOnce(&Lab) -> Result<Value>, reason: &str) -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let mut thief = made_up(THIEF, 66);
        // Without it the claim alone decides.
        thief["metadata"]["annotations"].as_object_mut().context("no annotations")?.remove(OVERLAY_IPS);
        merge(&mut thief, &claim(lab)?);
        await_younger(lab, "n2")?;
        create_node(lab, &thief)?;
        let first = lab.node(1)?;
        let held = |when: &str| still_held(lab, first, &thief, reason).with_context(|| when.to_owned());
        held("at once")?;
        first.kill_agent()?;
        first.start_agent(&[])?;
        held("after a restart of the agent")?;
        first.kill_agent()?;
        forget(first)?;
        held("after the kernel has forgotten")?;
        ping_all(&all)
    })
}

/// Waits until a new Node is younger than this one: Kubernetes counts whole seconds.
fn await_younger(lab: &Lab, than: &str) -> Result<()> {
    eventually(PATIENCE, &format!("a new Node is younger than {than}"), || {
        let now = lab.api().create("/api/v1/nodes", &json!({ "metadata": { "name": "clock" } }))?;
        lab.api().delete_node("clock")?;
        let before = lab.api().node(than)?;
        let [before, now] = [&before, &now].map(|node| node["metadata"]["creationTimestamp"].to_string());
        ensure!(before < now, "both are of {now}");
        Ok(())
    })
}

/// The agent knows who held what by its record alone, which has had its time to be written; without it the older Node is
/// believed, and of two with one key neither.
fn after_a_reboot() -> Result<()> {
    let mut config = LabConfig { nodes: 2, ..LabConfig::default() };
    config.agent.insert("resyncInterval".into(), json!("1s"));
    with_config(config, |lab| {
        let mut thief = made_up(THIEF, 66);
        thief["metadata"]["annotations"].as_object_mut().context("no annotations")?.remove(OVERLAY_IPS);
        create_node(lab, &thief)?;
        await_younger(lab, THIEF)?;
        let honest = key_of(lab, "n2")?;
        lab.api().delete_node("n2")?;
        create_node(lab, &lab.node(2)?.object())?;
        let first = lab.node(1)?;
        eventually(PATIENCE, "n2 publishes its key again", || {
            let published = lab.api().annotation("n2", KEY)?;
            ensure!(published.as_ref() == Some(&honest), "{published:?}");
            Ok(())
        })?;
        await_rounds(first)?;
        await_peers(first, 2)?;
        let all = pods(lab)?;
        ping_all(&all)?;
        await_rounds(first)?;

        let prefixes = json!({ "spec": { "podCIDRs": ["10.244.2.0/24", "fd00:244:0:2::/64"] } });
        let copied = json!({ "metadata": { "annotations": { (KEY): honest } } });
        let own = json!({ "metadata": { "annotations": { (KEY): thief["metadata"]["annotations"][KEY] } } });
        let held = |claim: &Value, reason: &str| {
            first.kill_agent()?;
            lab.api().patch_node(THIEF, claim)?;
            forget(first)?;
            await_refusal(first, reason)?;
            await_peer(first, &honest, "the honest node has its prefixes", |peer| {
                peer.allowed_ips == ["10.244.2.0/24", "fd00:244:0:2::/64"]
                    && peer.endpoint == "172.30.0.12:51820"
            })?;
            ping_all(&all)
        };
        held(&prefixes, "DuplicatePodCidr").context("it claims the prefixes")?;
        held(&copied, "DuplicateKey").context("it claims the prefixes and the key")?;
        held(&json!({ "spec": { "podCIDRs": ["10.244.66.0/24"] } }), "DuplicateKey").context("the key")?;

        first.kill_agent()?;
        lab.api().patch_node(THIEF, &prefixes)?;
        lab.api().patch_node(THIEF, &own)?;
        std::fs::remove_file(first.path(RECORD))?;
        forget(first)?;
        await_refusal_of(first, "n2", json!("DuplicatePodCidr")).context("the control, without a record")
    })
}

/// Where an agent writes down who holds what.
const RECORD: &str = "/var/lib/wg-overlay/private-key.peers";

fn still_held(lab: &Lab, on: &Node, thief: &Value, reason: &str) -> Result<()> {
    await_peers(on, 1)?;
    await_refusal(on, reason)?;
    await_event(lab, on, THIEF, reason)?;
    let honest = key_of(lab, "n2")?;
    let nets = ["10.244.2.0/24", "fd00:244:0:2::/64"];
    await_peer(on, &honest, "the honest node has its prefixes", |peer| {
        nets.iter().all(|net| peer.allowed_ips.iter().any(|ip| ip == net))
    })?;
    let key = thief["metadata"]["annotations"][KEY].as_str().context("the thief has no key")?;
    ensure!(wg_peer(on, key)?.is_none(), "the thief's peer is programmed");
    let routes = routes(on)?;
    ensure!(nets.iter().all(|net| routes.contains(net)), "{routes}");
    Ok(())
}

fn await_refusal(on: &Node, reason: &str) -> Result<()> {
    await_refusal_of(on, THIEF, json!(reason))
}

fn await_refusal_of(on: &Node, name: &str, reason: Value) -> Result<()> {
    eventually(PATIENCE, &format!("{name} is refused for {reason}"), || {
        let shown = shown(on, name)?;
        ensure!(shown["reason"] == reason, "{shown}");
        Ok(())
    })
}

/// As a reboot does: the device is gone with its peers and routes, and the agent, killed before, starts anew.
fn forget(node: &Node) -> Result<()> {
    node.exec("ip", ["link", "del", "wgo0"])?;
    node.start_agent(&[])
}

/// A copied key is refused while its holder is known; where nobody is, both are, and the copy gains nothing.
fn key() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let honest = key_of(lab, "n2")?;
        let mut thief = made_up(THIEF, 66);
        thief["metadata"]["annotations"][KEY] = json!(honest);
        create_node(lab, &thief)?;
        let first = lab.node(1)?;
        for when in ["at once", "after a restart of the agent"] {
            await_refusal(first, "DuplicateKey").context(when)?;
            await_event(lab, first, THIEF, "DuplicateKey").context(when)?;
            let note = shown(first, THIEF)?["note"].to_string();
            ensure!(note.contains("n2"), "{when}: the holder is not named: {note}");
            await_peer(first, &honest, "the honest node keeps its peer", |peer| {
                peer.allowed_ips == ["10.244.2.0/24", "fd00:244:0:2::/64"]
                    && peer.endpoint == "172.30.0.12:51820"
            })?;
            ping_all(&all)?;
            first.kill_agent()?;
            first.start_agent(&[])?;
        }
        first.kill_agent()?;
        if first.path(RECORD).exists() {
            std::fs::remove_file(first.path(RECORD))?;
        }
        forget(first)?;
        for name in ["n2", THIEF] {
            await_refusal_of(first, name, json!("DuplicateKey")).context("with no holder known")?;
        }
        ensure!(wg_peer(first, &honest)?.is_none(), "a doubled key is programmed");
        lab.api().delete_node(THIEF)?;
        await_peers(first, 1)?;
        ping_all(&all)
    })
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}
