//! Nodes join, leave, return, come in crowds, or take no part.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{NodeConfig, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status, with_agents};
use crate::look::{
    await_peer, create_node, ensure_lossless, ensure_ready, key_of, made_up, metric, probing, routes, shown,
    wg_peer, wg_peers,
};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("a_third_node_joins_and_leaves", needs, joins_and_leaves),
        Case::new("a_node_is_deleted_and_recreated_under_one_name", needs, recreated),
        Case::new("two_hundred_nodes_come_and_go_at_once", needs, two_hundred),
        Case::new("agentless_and_down_nodes_make_nobody_unready", needs, agentless_and_down),
    ]
}

fn joins_and_leaves() -> Result<()> {
    with_agents(2, |lab| {
        let first = pods(lab)?;
        let mut prober = probing(lab, &first.iter().collect::<Vec<_>>())?;
        lab.add_node(NodeConfig::default())?.start_agent(&[])?;
        for node in lab.nodes() {
            await_peers(node, 2)?;
        }
        let third = lab.node(3)?.add_pod("third")?;
        for pod in &first {
            for ip in pod.ips() {
                eventually(PATIENCE, &format!("{third} reaches {pod}"), || third.ping(*ip))?;
            }
        }
        ensure_lossless(&mut prober, "a node joins")?;

        let key = key_of(lab, "n3")?;
        lab.node(3)?.kill_agent()?;
        lab.api().delete_node("n3")?;
        for node in [lab.node(1)?, lab.node(2)?] {
            await_peers(node, 1)?;
            ensure!(wg_peer(node, &key)?.is_none(), "wg still shows the peer on {}", node.name());
            let routes = routes(node)?;
            ensure!(!routes.contains("10.244.3.0/24"), "{routes}");
            ensure!(!routes.contains("fd00:244:0:3::/64"), "{routes}");
        }
        ensure_lossless(&mut prober, "a node leaves")
    })
}

fn recreated() -> Result<()> {
    with_agents(3, |lab| {
        let all = pods(lab)?;
        let [one, _, three] = all.as_slice() else { anyhow::bail!("not three pods") };
        let mut prober = probing(lab, &[one, three])?;
        let key = key_of(lab, "n2")?;
        let before = lab.api().node("n2")?["metadata"]["uid"].clone();
        // One after the other, within a resync: nothing may be concluded from the name alone.
        lab.api().delete_node("n2")?;
        create_node(lab, &lab.node(2)?.object())?;
        ensure!(lab.api().node("n2")?["metadata"]["uid"] != before, "it is the same Node");
        eventually(PATIENCE, "n2 publishes its key again", || {
            let published = lab.api().annotation("n2", crate::look::KEY)?;
            ensure!(published.as_ref() == Some(&key), "{published:?}");
            Ok(())
        })?;
        for node in lab.nodes() {
            await_peers(node, 2)?;
        }
        ping_all(&all)?;
        ensure_lossless(&mut prober, "another node is recreated")
    })
}

/// Made-up Nodes have /24s of the upper half; each is believed and none answers.
fn two_hundred() -> Result<()> {
    const MANY: u8 = 200;
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        for number in 50..50 + MANY {
            create_node(lab, &made_up(&format!("made-up-{number}"), number))?;
        }
        for node in lab.nodes() {
            await_peers(node, 1 + usize::from(MANY))?;
            ensure!(wg_peers(node)? == 1 + usize::from(MANY), "wg shows {} peers", wg_peers(node)?);
            let routed = routes(node)?.lines().filter(|line| line.contains("dev wgo0")).count();
            ensure!(routed == 2 * (1 + usize::from(MANY)), "{routed} routes into the tunnel");
            ensure_ready(node)?;
        }
        ensure_lossless(&mut prober, "two hundred nodes come")?;
        for number in 50..50 + MANY {
            lab.api().delete_node(&format!("made-up-{number}"))?;
        }
        for node in lab.nodes() {
            await_peers(node, 1)?;
            ensure!(wg_peers(node)? == 1, "wg shows {} peers", wg_peers(node)?);
        }
        ensure_lossless(&mut prober, "two hundred nodes go")
    })
}

fn agentless_and_down() -> Result<()> {
    with_agents(3, |lab| {
        let mut windows = made_up("windows", 60);
        windows["metadata"]["annotations"] = json!({});
        create_node(lab, &windows)?;
        let mut unassigned = made_up("unassigned", 61);
        unassigned["spec"] = json!({});
        create_node(lab, &unassigned)?;
        let down = key_of(lab, "n3")?;
        lab.node(3)?.power_off();
        let left = [lab.node(1)?, lab.node(2)?];
        for node in left {
            for (name, reason) in [("windows", "NoPublicKey"), ("unassigned", "NoPodCidr")] {
                eventually(PATIENCE, &format!("{} shows {name} as no agent's", node.name()), || {
                    let shown = shown(node, name)?;
                    ensure!(shown["state"] == "NoAgent" && shown["reason"] == reason, "{shown}");
                    Ok(())
                })?;
            }
            await_peer(node, &down, "a node that is down stays programmed", |_| true)?;
            ensure_ready(node)?;
            let status = status(node)?;
            ensure!(status["problems"] == json!([]), "{}", status["problems"]);
            ensure!(metric(node, "wg_overlay_ready")? == 1.0, "the metric says that it is not ready");
        }
        let (one, two) = (left[0].add_pod("p")?, left[1].add_pod("p")?);
        for ip in two.ips() {
            eventually(PATIENCE, "the others go on", || one.ping(*ip))?;
        }
        let silent = "10.244.3.1".parse().context("an address")?;
        ensure!(one.ping(silent).is_err(), "a node that is down answers");
        Ok(())
    })
}
