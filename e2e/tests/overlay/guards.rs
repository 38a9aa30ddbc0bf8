//! Fail closed: no pod packet leaves unencrypted while a peer is unknown, the tunnel is gone or the agent is stopped,
//! and each of the two guards holds without the other.
//!
//! Pods send all the time; the captures prove themselves with a deliberate plaintext packet first.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{Capture, Lab, LabConfig, Node, Prober, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, status, with_agents};
use crate::look::{probing, wg_overlay};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("an_unknown_peer_gets_no_plaintext", &[], unknown_peer),
        Case::new("without_agent_and_tunnel_no_plaintext_leaves", &[], without_agent),
        Case::new("an_uninstall_beneath_pods_that_send_leaks_nothing", &[], uninstalled),
        Case::new("the_unreachable_routes_hold_without_the_rules", &[], routes_alone),
        Case::new("the_rules_hold_without_the_unreachable_routes", &[], rules_alone),
        Case::new("fail_open_lets_plaintext_leave_and_says_so", &["ping"], fail_open),
    ]
}

/// Two nodes, captured from before their agents start to the end, whose pods send to each other.
pub fn while_pods_send(body: impl FnOnce(&Lab, &mut Prober) -> Result<()>) -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        let capture = proved(lab)?;
        for node in lab.nodes() {
            node.start_agent(&[])?;
        }
        for node in lab.nodes() {
            await_peers(node, 1)?;
        }
        let pods = pods(lab)?;
        let mut prober = probing(lab, &pods.iter().collect::<Vec<_>>())?;
        body(lab, &mut prober)?;
        let report = capture.stop()?;
        report.assert_no_plaintext()?;
        ensure!(report.class("wireguard").packets > 0, "the capture saw no WireGuard:\n{report}");
        Ok(())
    })
}

fn proved(lab: &Lab) -> Result<Capture> {
    let mut capture = lab.capture()?;
    capture.positive_control()?;
    Ok(capture)
}

/// Packets of every pair while a guard is what holds them: none may arrive.
fn all_are_lost(prober: &mut Prober, why: &str) -> Result<()> {
    prober.reset()?;
    prober.await_packets(100, PATIENCE)?;
    for pair in prober.report()? {
        ensure!(pair.received == 0, "{why}: {pair}");
    }
    Ok(())
}

fn unknown_peer() -> Result<()> {
    while_pods_send(|lab, prober| {
        let gone = lab.node(2)?;
        lab.api().delete_node(gone.name())?;
        await_peers(lab.node(1)?, 0)?;
        all_are_lost(prober, "with the peer unknown")?;
        lab.api().create("/api/v1/nodes", &gone.object())?;
        await_peers(lab.node(1)?, 1)?;
        prober.await_flow(PATIENCE)
    })
}

fn without_agent() -> Result<()> {
    while_pods_send(|lab, prober| {
        let node = lab.node(1)?;
        node.stop_agent()?;
        prober.reset()?;
        prober.await_packets(50, PATIENCE)?;
        let lost: u64 = prober.report()?.iter().map(|pair| pair.lost).sum();
        ensure!(lost == 0, "{lost} packets were lost with the agent stopped");
        node.exec("ip", ["link", "del", "wgo0"])?;
        all_are_lost(prober, "without the tunnel")?;
        node.start_agent(&[])?;
        await_peers(node, 1)?;
        prober.await_flow(PATIENCE)
    })
}

fn uninstalled() -> Result<()> {
    while_pods_send(|lab, prober| {
        let node = lab.node(1)?;
        node.stop_agent()?;
        let cleanup = ["cleanup", "--force", "--config", "/etc/wg-overlay/config.yaml"];
        let said = wg_overlay(node, &cleanup)?;
        ensure!(said.code == Some(0), "cleanup: {}{}", said.out, said.err);
        all_are_lost(prober, "after the uninstall")
    })
}

fn routes_alone() -> Result<()> {
    while_pods_send(|lab, prober| {
        let node = lab.node(1)?;
        node.stop_agent()?;
        node.exec("nft", ["delete table inet wg-overlay"])?;
        node.exec("ip", ["link", "del", "wgo0"])?;
        all_are_lost(prober, "with the routes alone")
    })
}

fn rules_alone() -> Result<()> {
    while_pods_send(|lab, prober| {
        let node = lab.node(1)?;
        node.stop_agent()?;
        for family in ["-4", "-6"] {
            node.exec("ip", [family, "route", "flush", "proto", "87", "type", "unreachable"])?;
        }
        node.exec("ip", ["link", "del", "wgo0"])?;
        let before = counted(node, "plaintext_out")?;
        all_are_lost(prober, "with the rules alone")?;
        let dropped = counted(node, "plaintext_out")? - before;
        ensure!(dropped >= 100, "the rules counted {dropped} drops of more than 100 packets");
        node.start_agent(&[])?;
        await_peers(node, 1)?;
        let told = status(node)?["guard"]["drops"]["plaintext_out"].as_u64();
        ensure!(told >= Some(dropped), "status tells of {told:?} drops of {dropped}");
        prober.await_flow(PATIENCE)
    })
}

fn fail_open() -> Result<()> {
    with_agents(0, |lab| {
        lab.add_node(Default::default())?;
        let node = lab.node(1)?;
        node.set_agent_config("failClosed", json!(false));
        node.start_agent(&[])?;
        await_peers(node, 0)?;
        ensure!(status(node)?["guard"]["failClosed"] == false, "status: {}", status(node)?["guard"]);
        let said = node.wg_overlay(&["status"])?;
        ensure!(said.contains("FAIL OPEN"), "status does not say it loudly:\n{said}");
        let unreachable = node.exec("ip", ["route", "show", "table", "all", "type", "unreachable"])?
            + &node
                .exec("ip", ["-6", "route", "show", "table", "all", "type", "unreachable", "proto", "87"])?;
        ensure!(unreachable.is_empty(), "there are unreachable routes: {unreachable}");
        let pod = node.add_pod("p")?;
        let capture = proved(lab)?;
        for foreign in ["10.244.99.9", "fd00:244:0:99::9"] {
            // Nobody has the address: what counts is that the packet leaves.
            let _unanswered = pod.exec("ping", ["-n", "-c1", "-W1", foreign]);
        }
        eventually(PATIENCE, "plaintext leaves", || {
            let report = capture.report()?;
            ensure!(report.plaintext() >= 2, "{report}");
            Ok(())
        })
    })
}

/// What a named counter of the table stands at; the agent need not run.
pub fn counted(node: &Node, counter: &str) -> Result<u64> {
    let text = node.exec("nft", ["list", "counter", "inet", "wg-overlay", counter])?;
    let number = text.split_once("packets ").and_then(|(_, rest)| rest.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).with_context(|| format!("no number in: {text}"))
}
