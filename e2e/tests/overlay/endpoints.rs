//! Where a peer is reached: what a person wrote, by address or name, and what WireGuard learns by itself.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, with_agents, with_config};
use crate::look::{
    ENDPOINT, await_peer, await_rounds, ensure_ready, hosts, key_of, metric, plan, shown, wg_overlay,
};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("an_annotated_endpoint_wins_and_is_kept_alive", needs, annotated),
        Case::new("a_named_endpoint_is_resolved_and_its_last_answer_kept", needs, named),
        Case::new("an_unresolved_name_is_said_and_makes_nobody_unready", needs, unresolved),
        Case::new("an_external_address_is_used_where_no_internal_one_can_be", needs, external),
        Case::new("a_roaming_peer_is_followed_and_left_alone", needs, roaming),
        Case::new("a_restarted_agent_follows_a_new_address_at_once", needs, restarted),
    ]
}

fn annotated() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let (first, second) = (lab.node(1)?, lab.node(2)?);
        let key = key_of(lab, "n2")?;
        await_peer(first, &key, "the InternalIP without keepalive", |peer| {
            peer.endpoint == "172.30.0.12:51820" && peer.keepalive == "off"
        })?;
        // Nothing answers there: only what is written can bring it.
        lab.api().annotate("n2", &json!({ (ENDPOINT): "172.30.0.213:7777" }))?;
        await_peer(first, &key, "the annotated endpoint with a keepalive", |peer| {
            peer.endpoint == "172.30.0.213:7777" && peer.keepalive == "25"
        })?;
        ensure!(shown(first, "n2")?["annotated"] == true, "status does not say that it is annotated");
        lab.api().annotate("n2", &json!({ (ENDPOINT): "[fd00:30::c]" }))?;
        await_peer(first, &key, "an address without port", |peer| peer.endpoint == "[fd00:30::c]:51820")?;
        ping_all(&all)?;
        // Per node by annotation, and off again.
        lab.api().annotate("n2", &json!({ "wg-overlay.io/persistent-keepalive": "9" }))?;
        await_peer(first, &key, "the annotated keepalive", |peer| peer.keepalive == "9")?;
        let none = json!({ (ENDPOINT): null, "wg-overlay.io/persistent-keepalive": null });
        lab.api().annotate("n2", &none)?;
        await_peer(first, &key, "the InternalIP again", |peer| {
            peer.endpoint == "172.30.0.12:51820" && peer.keepalive == "off"
        })?;
        ensure!(shown(first, "n2")?["annotated"] == false, "status still says annotated");
        await_peer(second, &key_of(lab, "n1")?, "n1's own endpoint", |peer| peer.keepalive == "off")?;
        ping_all(&all)
    })
}

/// The resolver asks once a minute: the last change waits for that, the one before is hurried.
fn named() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let first = lab.node(1)?;
        let key = key_of(lab, "n2")?;
        hosts(first, "172.30.0.12 edge.lab")?;
        hosts(lab.node(2)?, "172.30.0.12 edge.lab")?;
        lab.api().annotate("n2", &json!({ (ENDPOINT): "Edge.Lab:51820" }))?;
        await_peer(first, &key, "the name's address with a keepalive", |peer| {
            peer.endpoint == "172.30.0.12:51820" && peer.keepalive == "25"
        })?;
        ensure!(shown(first, "n2")?["annotated"] == true, "status does not say that it is annotated");
        ping_all(&all)?;

        let changed = "wg_overlay_kernel_changes_total{object=\"peer\",operation=\"change\"}";
        let changes = metric(first, changed)?;
        hosts(first, "172.30.0.77 unasked.lab")?;
        nameless(first)?;
        hurry(lab)?;
        eventually(PATIENCE, "n1 says that the name has no answer", || {
            ensure!(first.agent_log().contains("the last good one is kept"), "not yet");
            Ok(())
        })?;
        await_peer(first, &key, "the last answer is kept", |peer| peer.endpoint == "172.30.0.12:51820")?;
        ensure!(shown(first, "n2")?["state"] != "Unresolved", "it counts as unresolved");
        ensure!(metric(first, changed)? == changes, "a peer was changed");
        ping_all(&all)?;

        hosts(first, "172.30.0.213 edge.lab")?;
        eventually(2 * PATIENCE, "the name's new address is taken over", || {
            let endpoint = shown(first, "n2")?["endpoint"].clone();
            ensure!(endpoint == "172.30.0.213:51820", "{endpoint}");
            Ok(())
        })?;
        ensure!(plan(first)?.contains("as it should be"), "plan resolves otherwise: {}", plan(first)?);
        Ok(())
    })
}

fn unresolved() -> Result<()> {
    with_agents(2, |lab| {
        let first = lab.node(1)?;
        nameless(first)?;
        nameless(lab.node(2)?)?;
        let mut edge = crate::look::made_up("edge", 90);
        edge["metadata"]["annotations"][ENDPOINT] = json!("nowhere.lab:51820");
        crate::look::create_node(lab, &edge)?;
        eventually(PATIENCE, "status names the name", || {
            let shown = shown(first, "edge")?;
            ensure!(shown["state"] == "Unresolved", "{shown}");
            ensure!(shown["note"].as_str().is_some_and(|note| note.contains("nowhere.lab")), "{shown}");
            Ok(())
        })?;
        let peer = |peer: &crate::look::WgPeer| peer.endpoint == "(none)" && peer.allowed_ips.len() == 2;
        await_peer(first, &crate::look::made_up_key(90), "its peer waits without an endpoint", peer)?;
        ensure_ready(first)?;
        ensure!(wg_overlay(first, &["status"])?.code == Some(1), "status exits otherwise than 1");
        ensure!(metric(first, "wg_overlay_peers{state=\"unresolved\"}")? == 1.0, "no metric");
        hosts(first, "172.30.0.90 nowhere.lab")?;
        hurry(lab)?;
        eventually(PATIENCE, "the name is asked for again", || {
            let shown = shown(first, "edge")?;
            ensure!(shown["endpoint"] == "172.30.0.90:51820" && shown["state"] != "Unresolved", "{shown}");
            Ok(())
        })
    })
}

/// n1 has no route to the InternalIP in a family of its own, nor a use for a link-local one.
fn external() -> Result<()> {
    with_agents(2, |lab| {
        let first = lab.node(1)?;
        first.exec("ip", ["route", "del", "default"])?;
        let mut edge = crate::look::made_up("edge", 91);
        edge["status"]["addresses"] = json!([
            { "type": "InternalIP", "address": "fe80::91" },
            { "type": "InternalIP", "address": "203.0.113.91" },
            { "type": "ExternalIP", "address": "172.30.0.91" },
            { "type": "Hostname", "address": "172.30.0.92" },
        ]);
        crate::look::create_node(lab, &edge)?;
        let key = crate::look::made_up_key(91);
        await_peer(first, &key, "the ExternalIP with a keepalive", |peer| {
            peer.endpoint == "172.30.0.91:51820" && peer.keepalive == "25"
        })?;
        // The other has a default route, and by it a way to the InternalIP.
        await_peer(lab.node(2)?, &key, "the InternalIP", |peer| {
            peer.endpoint == "203.0.113.91:51820" && peer.keepalive == "off"
        })
    })
}

fn roaming() -> Result<()> {
    let mut config = LabConfig::default();
    config.agent.insert("resyncInterval".into(), json!("1s"));
    with_config(config, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let [one, two] = all.as_slice() else { anyhow::bail!("not two pods") };
        let (first, second) = (lab.node(1)?, lab.node(2)?);
        let key = key_of(lab, "n2")?;
        second.namespace().ip(&[
            "addr del 172.30.0.12/24 dev eth0".into(),
            "addr add 172.30.0.62/24 dev eth0".into(),
            "route replace default via 172.30.0.1".into(),
        ])?;
        eventually(PATIENCE, "n2's traffic teaches n1 where it is", || {
            let _unanswered_until_learnt = two.ping(one.ipv4()?);
            let peer = crate::look::wg_peer(first, &key)?.context("no peer")?;
            ensure!(peer.endpoint == "172.30.0.62:51820", "{peer:?}");
            Ok(())
        })?;
        ping_all(&all)?;
        let changes = metric(first, "wg_overlay_kernel_changes_total")?;
        await_rounds(first)?;
        await_rounds(first)?;
        await_peer(first, &key, "what was learnt is left alone", |peer| {
            peer.endpoint == "172.30.0.62:51820"
        })?;
        ensure!(metric(first, "wg_overlay_kernel_changes_total")? == changes, "the kernel was changed");
        ensure!(plan(first)?.contains("as it should be"), "plan would change it: {}", plan(first)?);

        // n2 has this address too, but never sends from it: only the agent can have written it.
        let advertised: Value =
            json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "172.30.0.213" }] } });
        lab.api().patch_status("n2", &advertised)?;
        await_peer(first, &key, "a newly advertised one is written", |peer| {
            peer.endpoint == "172.30.0.213:51820"
        })
    })
}

/// The session of before is no reason to stay at the old address: the peer is not there any more, and may have nothing to say.
fn restarted() -> Result<()> {
    with_agents(2, |lab| {
        ping_all(&pods(lab)?)?;
        let first = lab.node(1)?;
        first.kill_agent()?;
        first.start_agent(&[])?;
        await_peers(first, 1)?;
        let advertised: Value =
            json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "172.30.0.213" }] } });
        lab.api().patch_status("n2", &advertised)?;
        await_peer(first, &key_of(lab, "n2")?, "the new address is written", |peer| {
            peer.endpoint == "172.30.0.213:51820"
        })
    })
}

/// A name that is new is asked for at once, and all others with it.
fn hurry(lab: &Lab) -> Result<()> {
    let mut other = crate::look::made_up("other", 95);
    other["metadata"]["annotations"][ENDPOINT] = json!("other.lab:51820");
    crate::look::create_node(lab, &other)
}

/// No name server answers on the node: a name that `/etc/hosts` lacks has no answer.
fn nameless(node: &Node) -> Result<()> {
    fs::write(node.path("/etc/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        .context("write /etc/resolv.conf")
}
