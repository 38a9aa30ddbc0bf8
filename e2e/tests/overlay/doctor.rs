//! `doctor` on a node that is well, and with one thing after another broken on purpose.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::Node;
use wg_overlay_e2e::suite::Case;

use crate::cluster::with_agents;
use crate::look::wg_overlay;

pub fn cases() -> Vec<Case> {
    vec![Case::new("doctor_names_what_was_broken", &["ip", "nft"], broken)]
}

fn broken() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let (code, well) = doctor(node)?;
        // the machine's kernel is what it is
        let failed: Vec<_> = failing(&well).into_iter().filter(|check| check != "br-netfilter").collect();
        ensure!(failed.is_empty(), "of a node that is well: {well:#?}");
        ensure!(code == i32::from(!failing(&well).is_empty()), "exit status {code}: {well:#?}");

        let path = |path: &str| node.path(path);
        expect(node, "network-manager", "warn", || Ok(fs::create_dir_all(path("/run/NetworkManager"))?))?;
        expect(node, "systemd-networkd", "warn", || Ok(fs::create_dir_all(path("/run/systemd/netif"))?))?;
        expect(node, "machine-id", "warn", || Ok(fs::write(path("/etc/machine-id"), "")?))?;
        expect(node, "conflist", "fail", || Ok(fs::write(path("/etc/cni/net.d/00-other.conflist"), "{}")?))?;
        expect(node, "leftovers", "warn", || {
            node.exec("ip", ["link", "add", "cni0", "type", "bridge"])?;
            node.exec("ip", ["link", "set", "cni0", "up"]).map(drop)
        })?;
        expect(node, "foreign-routes", "fail", || {
            node.exec("ip", ["route", "add", "10.244.77.0/24", "dev", "cni0"]).map(drop)
        })?;
        // what the agent would repair
        expect(node, "agent", "fail", || node.kill_agent())?;
        expect(node, "boot-mark", "fail", || Ok(fs::remove_file(path("/run/wg-overlay/network.json"))?))?;
        expect(node, "forwarding", "fail", || {
            node.exec("sh", ["-c", "echo 0 > /proc/sys/net/ipv4/conf/all/forwarding"]).map(drop)
        })?;
        expect(node, "rp-filter", "warn", || {
            node.exec("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/conf/wgo0/rp_filter"]).map(drop)
        })?;
        expect(node, "host-firewall", "fail", || {
            node.exec("nft", ["add table inet site; add chain inet site f { type filter hook forward priority 0; policy drop; }"])
                .map(drop)
        })?;
        expect(node, "links", "warn", || node.exec("ip", ["link", "set", "wgobr0", "down"]).map(drop))?;
        let (code, findings) = doctor(node)?;
        ensure!(code == 1, "exit status {code}: {findings:#?}");
        let text = wg_overlay(node, &["doctor"])?.out;
        ensure!(
            text.contains("00-other.conflist") && text.contains("FAIL") && text.contains("-> "),
            "{text}"
        );
        Ok(())
    })
}

/// Breaks something, and sees the check turn from ok to this outcome.
fn expect(node: &Node, check: &str, outcome: &str, wreck: impl FnOnce() -> Result<()>) -> Result<()> {
    let (_, before) = doctor(node)?;
    ensure!(before.get(check).is_some_and(|found| found == "ok"), "{check} before: {before:#?}");
    wreck().with_context(|| format!("break {check}"))?;
    let (_, after) = doctor(node)?;
    ensure!(after.get(check).is_some_and(|found| found == outcome), "{check} is not {outcome}: {after:#?}");
    Ok(())
}

/// The exit status, and the outcome of each check.
fn doctor(node: &Node) -> Result<(i32, BTreeMap<String, String>)> {
    let said = wg_overlay(node, &["doctor", "--output", "json"])?;
    let findings: Vec<Value> =
        serde_json::from_str(&said.out).with_context(|| format!("doctor says {}{}", said.out, said.err))?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let outcomes = findings.iter().map(|f| (text(f, "check"), text(f, "outcome"))).collect();
    Ok((said.code.context("no exit status")?, outcomes))
}

fn failing(findings: &BTreeMap<String, String>) -> Vec<String> {
    findings.iter().filter(|(_, outcome)| *outcome == "fail").map(|(check, _)| check.clone()).collect()
}
