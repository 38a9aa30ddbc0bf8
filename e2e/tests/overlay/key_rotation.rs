//! A node's key changes under traffic on all pairs: no packet is lost, and nothing of the old key stays.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{Lab, Node, Pace, Pod, Prober, eventually, product};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status, with_agents};
use crate::guard_rules::is_closed;
use crate::look::rotation::{NEXT_KEY, await_end};
use crate::look::{create_node, ensure_lossless, key_of, made_up, made_up_key, metric, wg_overlay, wg_peer};

const SINCE: &str = "wg_overlay_last_key_change_timestamp_seconds";
const IN_PROGRESS: &str = "wg_overlay_key_rotation_in_progress";
const OK: &str = "wg_overlay_key_rotations_total{result=\"ok\"}";
const GIVEN_UP: &str = "wg_overlay_key_rotations_total{result=\"given_up\"}";

/// A node that is down is waited for, and a schedule has no shorter interval: a minute each.
const LONG: Duration = Duration::from_secs(240);

pub fn cases() -> Vec<Case> {
    let needs = &["wg"];
    vec![
        Case::new("a_key_changes_without_loss", needs, on_command),
        Case::new("two_keys_change_at_once_without_loss", needs, at_once),
        Case::new("a_change_of_key_waits_for_agents_that_are_down_and_survives_its_own", needs, restarted),
        Case::new("a_key_stays_where_an_agent_could_not_follow", needs, unready),
    ]
}

/// Those that take a minute and more.
pub fn waiting_cases() -> Vec<Case> {
    let needs = &["wg"];
    vec![
        Case::new("a_node_that_is_down_does_not_keep_a_key_from_changing", needs, down),
        Case::new("a_node_that_was_down_while_a_key_changed_follows", &["wg", "ping"], returned),
        Case::new("a_key_changes_on_schedule", needs, on_schedule),
    ]
}

fn on_command() -> Result<()> {
    under_traffic(3, |lab, all, prober| {
        let since = metric(lab.node(1)?, SINCE)?;
        for _ in 0..2 {
            let (first, second) = (lab.node(1)?, lab.node(2)?);
            let before = key_of(lab, "n1")?;
            let next = lab.api().annotation("n1", NEXT_KEY)?.unwrap_or_default();
            begin(first)?;
            await_handshake(second, &next)?;
            let peer_next = lab.api().annotation("n2", NEXT_KEY)?.unwrap_or_default();
            await_handshake(first, &peer_next)?;
            await_end(lab, PATIENCE)?;
            ensure!(key_of(lab, "n1")? == next, "the next key is not the key");
            ensure_gone(lab, &before)?;
        }
        ensure_lossless(prober, "a key changes twice")?;
        let told = |series| metric(lab.node(1)?, series);
        let counted = (told(OK)?, told(GIVEN_UP)?, told(IN_PROGRESS)?);
        ensure!(counted == (2.0, 0.0, 0.0), "the metrics tell of {counted:?}");
        ensure!(told(SINCE)? > since, "the metrics tell of a key since {}", told(SINCE)?);
        let said = wg_overlay(lab.node(3)?, &["rotate-key"])?;
        ensure!(
            said.code == Some(0) && said.out.ends_with(&format!("the key is {} now\n", key_of(lab, "n3")?)),
            "{said:?}"
        );
        await_end(lab, PATIENCE)?;
        all.iter().try_for_each(Pod::check)?;
        ensure_lossless(prober, "another key changes")
    })
}

fn at_once() -> Result<()> {
    under_traffic(3, |lab, _, prober| {
        let before = [key_of(lab, "n1")?, key_of(lab, "n2")?];
        let command = |node: &Node| Ok::<_, anyhow::Error>(node.namespace().command(product("wg-overlay")?));
        let start = |node| Ok::<_, anyhow::Error>(command(node)?.args(["rotate-key", "--no-wait"]).spawn()?);
        let nodes = [lab.node(1)?, lab.node(2)?];
        let both = [start(nodes[0])?, start(nodes[1])?];
        for (node, mut child) in nodes.into_iter().zip(both) {
            if !child.wait()?.success() {
                // it has seen the other begin, and may when that has ended
                eventually(PATIENCE, "the other rotation ends", || begin(node))?;
            }
        }
        await_end(lab, PATIENCE)?;
        before.iter().try_for_each(|key| ensure_gone(lab, key))?;
        ensure_lossless(prober, "two keys change")
    })
}

fn restarted() -> Result<()> {
    under_traffic(3, |lab, all, prober| {
        let (first, second) = (lab.node(1)?, lab.node(2)?);
        let before = key_of(lab, "n1")?;
        second.kill_agent()?;
        begin(first)?;
        await_phase(first, "away", "n2")?;
        ensure!(metric(first, IN_PROGRESS)? == 1.0, "the metrics tell of no rotation");
        await_handshake(lab.node(3)?, &lab.api().annotation("n1", NEXT_KEY)?.unwrap_or_default())?;
        // Now the second devices' port is as closed to pods as the first's.
        let pod = all.first().context("no pod")?;
        for address in [first, lab.node(3)?].into_iter().flat_map(Node::addresses) {
            is_closed(first, pod, SocketAddr::new(address, 51821))?;
        }
        first.kill_agent()?;
        first.start_agent(&[])?;
        await_phase(first, "away", "n2")?;
        second.start_agent(&[])?;
        eventually(PATIENCE, "the key has changed", || {
            ensure!(key_of(lab, "n1")? != before, "{before}");
            Ok(())
        })?;
        first.kill_agent()?;
        first.start_agent(&[])?;
        await_end(lab, PATIENCE)?;
        ensure_gone(lab, &before)?;
        ensure_lossless(prober, "agents are killed while a key changes")
    })
}

fn down() -> Result<()> {
    under_traffic(2, |lab, _, prober| {
        // with its next key at once: an agent that knows the Node without it refuses
        let mut ghost = made_up("ghost", 77);
        ghost["metadata"]["annotations"][NEXT_KEY] = json!(made_up_key(78));
        create_node(lab, &ghost)?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 2))?;
        let before = key_of(lab, "n1")?;
        begin(lab.node(1)?)?;
        await_end(lab, LONG)?;
        ensure_gone(lab, &before)?;
        ensure_lossless(prober, "a key changes while a node is down")
    })
}

fn returned() -> Result<()> {
    with_agents(3, |lab| {
        let all = pods(lab)?;
        await_next_keys(lab)?;
        let third = lab.node(3)?;
        third.kill_agent()?;
        third.exec(
            "nft",
            ["add table inet off; add chain inet off in { type filter hook input priority -400; policy drop; };
              add chain inet off out { type filter hook output priority -400; policy drop; }"],
        )?;
        let before = key_of(lab, "n1")?;
        begin(lab.node(1)?)?;
        eventually(LONG, "the key has changed", || {
            ensure!(key_of(lab, "n1")? != before, "{before}");
            Ok(())
        })?;
        ensure!(wg_peer(third, &before)?.is_some(), "the node that is off has heard of it");
        third.exec("nft", ["delete table inet off"])?;
        third.start_agent(&[])?;
        await_end(lab, PATIENCE)?;
        ensure_gone(lab, &before)?;
        ping_all(&all)
    })
}

fn on_schedule() -> Result<()> {
    under_traffic(2, |lab, _, prober| {
        let before = key_of(lab, "n1")?;
        let first = lab.node(1)?;
        first.stop_agent()?;
        first.set_agent_config("keyRotationInterval", json!("1m"));
        first.start_agent(&[])?;
        eventually(LONG, "the key has changed", || {
            ensure!(key_of(lab, "n1")? != before, "{before}");
            Ok(())
        })?;
        eventually(PATIENCE, "nothing has the old key", || ensure_gone(lab, &before))?;
        ensure_lossless(prober, "a key changes on schedule")
    })
}

fn unready() -> Result<()> {
    with_agents(2, |lab| {
        create_node(lab, &made_up("old", 77))?;
        await_peers(lab.node(1)?, 2)?;
        let before = key_of(lab, "n1")?;
        let said = wg_overlay(lab.node(1)?, &["rotate-key"])?;
        ensure!(
            said.code == Some(1) && said.err.contains("can't follow") && said.err.contains("old"),
            "{said:?}"
        );
        ensure!(key_of(lab, "n1")? == before, "the key changed");
        Ok(())
    })
}

/// Three nodes are twelve flows: at this pace an emulated machine carries them.
fn under_traffic(nodes: u8, body: impl FnOnce(&Lab, &[Pod], &mut Prober) -> Result<()>) -> Result<()> {
    with_agents(nodes, |lab| {
        let all = pods(lab)?;
        let pace = Pace { interval: Duration::from_millis(30), ..Pace::default() };
        let mut prober = lab.paced_prober(&all.iter().collect::<Vec<_>>(), pace)?;
        prober.await_flow(PATIENCE)?;
        prober.reset()?;
        await_next_keys(lab)?;
        body(lab, &all, &mut prober)
    })
}

fn await_next_keys(lab: &Lab) -> Result<()> {
    eventually(PATIENCE, "every node publishes its next key", || {
        for node in lab.nodes() {
            ensure!(lab.api().annotation(node.name(), NEXT_KEY)?.is_some(), "{} does not", node.name());
        }
        Ok(())
    })
}

fn begin(node: &Node) -> Result<()> {
    let said = wg_overlay(node, &["rotate-key", "--no-wait"])?;
    ensure!(said.code == Some(0), "{said:?}");
    Ok(())
}

/// Waits until `wg` shows a handshake with this key on a node's second device.
fn await_handshake(on: &Node, key: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{} has a session by wgo1", on.name()), || {
        let shown = on.exec("wg", ["show", "wgo1", "latest-handshakes"])?;
        let up = |line: &str| line.split_once('\t').is_some_and(|(peer, at)| peer == key && at != "0");
        ensure!(shown.lines().any(up), "{shown}");
        Ok(())
    })
}

fn await_phase(node: &Node, phase: &str, waits_for: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{} is {phase} and waits for {waits_for}", node.name()), || {
        let rotation = &status(node)?["rotation"];
        ensure!(rotation["phase"] == phase && rotation["waitingFor"] == json!([waits_for]), "{rotation}");
        Ok(())
    })
}

/// No device has this key, for itself or a peer.
fn ensure_gone(lab: &Lab, key: &str) -> Result<()> {
    for node in lab.nodes() {
        let shown = node.exec("wg", ["show", "all", "dump"])?;
        ensure!(!shown.contains(key), "{}: {key} in\n{shown}", node.name());
    }
    Ok(())
}
