//! What is ours comes back when somebody else changes it, and what isn't ours stays.
//!
//! Each case breaks a node of two under traffic and waits until its kernel holds again what it held, and packets flow.
//! Where events must do it, the resync is an hour away. How long each repair took is printed, never asserted.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, Prober, eventually};
use wg_overlay_e2e::look::breaks::{self, Break};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, status, with_config};
use crate::kernel::{Kernel, await_kernel, kernel};
use crate::look::probing;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("links_and_addresses_come_back_by_events", &["wg"], links_and_addresses),
        Case::new("routes_come_back_by_events", &["wg"], routes),
        Case::new("rules_come_back_by_events", &["wg"], rules),
        Case::new("peers_key_and_port_come_back_at_a_resync", &["wg"], wireguard_settings),
        Case::new("what_is_foreign_stays", &["wg"], foreign),
    ]
}

/// A kernel that is broken and repaired under traffic.
pub struct Patient<'a> {
    pub node: &'a Node,
    pub healthy: Kernel,
    pub prober: Prober,
}

impl Patient<'_> {
    /// Runs commands of a shell on the node, and waits for what was before.
    fn survives(&mut self, what: &str, commands: &str) -> Result<()> {
        let Self { node, healthy, prober } = self;
        // The agent may be replacing its table at this very moment: nft then does not find what it was told to change.
        eventually(PATIENCE, &format!("break: {what}"), || node.exec("bash", ["-euc", commands]))?;
        let broken = Instant::now();
        await_kernel(node, healthy, what)?;
        println!("  repair: {what}: within {} ms", broken.elapsed().as_millis());
        prober.await_flow(PATIENCE).with_context(|| format!("after: {what}"))
    }

    fn survives_all(&mut self, breaks: &[Break]) -> Result<()> {
        breaks.iter().try_for_each(|(what, commands)| self.survives(what, commands))
    }
}

/// Two nodes under traffic, the first of which will be broken.
pub fn with_patient(resync: &str, body: impl FnOnce(&Lab, Patient<'_>) -> Result<()>) -> Result<()> {
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!(resync))]);
    with_config(LabConfig { agent, ..LabConfig::default() }, |lab| {
        let pods = pods(lab)?;
        let prober = probing(lab, &pods.iter().collect::<Vec<_>>())?;
        let node = lab.node(1)?;
        body(lab, Patient { node, healthy: kernel(node), prober })
    })
}

fn links_and_addresses() -> Result<()> {
    with_patient("1h", |_, mut patient| patient.survives_all(&breaks::LINKS))
}

fn routes() -> Result<()> {
    with_patient("1h", |_, mut patient| {
        patient.survives_all(&breaks::ROUTES)?;
        let Patient { node, healthy, .. } = &patient;
        let [take, give_back] = breaks::TAKEN;
        node.exec("sh", ["-c", take])?;
        eventually(PATIENCE, "the foreign route in the place of ours is named", || {
            let problems = status(node)?["problems"].to_string();
            ensure!(problems.contains("10.244.2.0/24") && problems.contains("somebody else's"), "{problems}");
            Ok(())
        })?;
        node.exec("sh", ["-c", give_back])?;
        await_kernel(node, healthy, "a route whose place was taken")
    })
}

fn rules() -> Result<()> {
    with_patient("1h", |_, mut patient| {
        patient.survives_all(&breaks::RULES)?;
        patient.survives_all(&[breaks::RULESET])
    })
}

fn wireguard_settings() -> Result<()> {
    with_patient("2s", |_, mut patient| patient.survives_all(&breaks::WIREGUARD))
}

fn foreign() -> Result<()> {
    with_patient("2s", |_, mut patient| {
        let node = patient.node;
        let on_kernel = status(node)?["device"]["implementation"] == "kernel";
        let wireguard = if on_kernel { "ip link add foreign-wg type wireguard;" } else { "" };
        let on_ours = format!("{wireguard} ip route add 198.51.101.0/24 dev wgo0 proto static");
        node.exec("bash", ["-euc", &on_ours])?;
        breaks::add_foreign(node)?;
        let before = breaks::foreign(node)?;
        patient.survives("everything of ours but the links", "ip addr flush dev wgobr0 scope global; ip route flush proto 87; ip -6 route flush proto 87; nft delete table inet wg-overlay")?;
        patient.survives("the peer removed", "wg set wgo0 peer $(wg show wgo0 peers) remove")?;
        node.kill_agent()?;
        node.start_agent(&[])?;
        await_peers(node, 1)?;
        let after = breaks::foreign(node)?;
        ensure!(after == before, "foreign things were\n{before}\nand are\n{after}");
        Ok(())
    })
}
