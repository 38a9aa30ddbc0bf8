//! What is ours comes back when somebody else changes it, and what isn't ours stays.
//!
//! Each case breaks a node of two under traffic and waits until its kernel holds again what it held, and packets flow.
//! Where events must do it, the resync is an hour away. How long each repair took is printed, never asserted.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, Prober, eventually};
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

    fn survives_all(&mut self, breaks: &[(&str, &str)]) -> Result<()> {
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
    with_patient("1h", |_, mut patient| {
        patient.survives_all(&[
            ("wgo0 deleted", "ip link del wgo0"),
            ("wgo0 set down", "ip link set wgo0 down"),
            ("wgo0 set down and up", "ip link set wgo0 down; ip link set wgo0 up"),
            ("wgo0's addresses removed", "ip addr flush dev wgo0"),
            ("a foreign address on wgo0", "ip addr add 10.244.1.77/32 dev wgo0"),
            ("wgo0's MTU changed", "ip link set wgo0 mtu 1300"),
            ("wgo0's mark removed", "ip link set wgo0 alias ''"),
            ("wgobr0's addresses removed", "ip addr flush dev wgobr0 scope global"),
            ("wgobr0 set down", "ip link set wgobr0 down"),
            ("wgobr0's MTU changed", "ip link set wgobr0 mtu 1300"),
            (
                "wgobr0's netfilter switched off",
                "ip link set wgobr0 type bridge nf_call_iptables 0 nf_call_ip6tables 0",
            ),
        ])
    })
}

fn routes() -> Result<()> {
    with_patient("1h", |_, mut patient| {
        patient.survives_all(&[
            ("a peer's IPv4 route removed", "ip route del 10.244.2.0/24 proto 87"),
            ("a peer's IPv6 route removed", "ip -6 route del fd00:244:0:2::/64 proto 87"),
            ("all our routes removed", "ip route flush proto 87; ip -6 route flush proto 87"),
            ("a peer's IPv4 route changed", "ip route replace 10.244.2.0/24 via 172.30.0.1 proto 87"),
            (
                "a peer's IPv6 route changed",
                "ip -6 route replace fd00:244:0:2::/64 via fd00:30::1 proto 87 metric 1024",
            ),
            ("an unreachable route removed", "ip route del unreachable 10.244.0.0/16 proto 87"),
            ("an IPv6 unreachable route removed", "ip -6 route del unreachable fd00:244::/56 proto 87"),
            ("a route of ours to nowhere", "ip route add 10.244.9.0/24 dev wgo0 proto 87"),
        ])?;
        let Patient { node, healthy, .. } = &patient;
        node.exec("ip", ["route", "replace", "10.244.2.0/24", "via", "172.30.0.1"])?;
        eventually(PATIENCE, "the foreign route in the place of ours is named", || {
            let problems = status(node)?["problems"].to_string();
            ensure!(problems.contains("10.244.2.0/24") && problems.contains("somebody else's"), "{problems}");
            Ok(())
        })?;
        node.exec("ip", ["route", "del", "10.244.2.0/24", "via", "172.30.0.1"])?;
        await_kernel(node, healthy, "a route whose place was taken")
    })
}

fn rules() -> Result<()> {
    with_patient("1h", |_, mut patient| {
        let table = "inet wg-overlay";
        let first =
            format!("nft -a list chain {table} from_pods | sed -n 's/.*drop # handle //p' | head -n1");
        patient.survives_all(&[
            ("the table flushed", &format!("nft flush table {table}")),
            ("the table deleted", &format!("nft delete table {table}")),
            ("the whole ruleset flushed", "nft flush ruleset"),
            ("a rule deleted", &format!("nft delete rule {table} from_pods handle $({first})")),
            ("a rule added", &format!("nft insert rule {table} plaintext_outbound accept")),
            ("an endpoint removed", &format!("nft flush set {table} endpoints4")),
            ("the guarded prefixes removed", &format!("nft flush set {table} cluster4")),
        ])
    })
}

fn wireguard_settings() -> Result<()> {
    with_patient("2s", |_, mut patient| {
        let peer = r#"peer=$(wg show wgo0 peers | head -n1); "#;
        let with_peer = |command: &str| format!("{peer} wg set wgo0 peer $peer {command}");
        patient.survives_all(&[
            ("the peer removed", &with_peer("remove")),
            ("its allowed IPs changed", &with_peer("allowed-ips 10.244.77.0/24")),
            ("its allowed IPs widened", &with_peer("allowed-ips 10.244.0.0/16,fd00:244::/56")),
            ("its keepalive changed", &with_peer("persistent-keepalive 7")),
            (
                "a preshared key set",
                &format!("{peer} wg genpsk > /run/psk; wg set wgo0 peer $peer preshared-key /run/psk"),
            ),
            (
                "a foreign peer added",
                "wg set wgo0 peer $(wg genkey | wg pubkey) allowed-ips 10.244.2.0/24 endpoint 172.30.0.1:9",
            ),
            ("the device's key changed", "wg genkey > /run/key; wg set wgo0 private-key /run/key"),
            ("the device's port changed", "wg set wgo0 listen-port 51999"),
        ])
    })
}

fn foreign() -> Result<()> {
    with_patient("2s", |_, mut patient| {
        let node = patient.node;
        let on_kernel = status(node)?["device"]["implementation"] == "kernel";
        let wireguard = if on_kernel { "ip link add foreign-wg type wireguard;" } else { "" };
        node.exec(
            "bash",
            [
                "-euc",
                &format!(
                    "{wireguard}
                    ip link add foreign-br type bridge; ip link set foreign-br up
                    ip link add wgp0foreign type veth peer name foreign-peer
                    ip addr add 203.0.113.9/32 dev eth0
                    ip addr add 203.0.113.10/24 dev foreign-br
                    ip route add 198.51.100.0/24 via 172.30.0.1 proto 99
                    ip route add 198.51.101.0/24 dev wgo0 proto static
                    ip route add 10.244.0.0/20 dev foreign-br proto static
                    ip route add unreachable 198.51.102.0/24 proto static
                    ip -6 route add 2001:db8:99::/48 via fd00:30::1 proto 99
                    ip rule add from 203.0.113.9 lookup 99
                    ip route add default via 172.30.0.1 table 99
                    nft add table inet foreign; nft add chain inet foreign c '{{ type filter hook forward priority 5; }}'
                    nft add rule inet foreign c counter comment wg-overlay-not"
                ),
            ],
        )?;
        let before = foreign_of(node)?;
        patient.survives("everything of ours but the links", "ip addr flush dev wgobr0 scope global; ip route flush proto 87; ip -6 route flush proto 87; nft delete table inet wg-overlay")?;
        patient.survives("the peer removed", "wg set wgo0 peer $(wg show wgo0 peers) remove")?;
        node.kill_agent()?;
        node.start_agent(&[])?;
        await_peers(node, 1)?;
        let after = foreign_of(node)?;
        ensure!(after == before, "foreign things were\n{before}\nand are\n{after}");
        Ok(())
    })
}

/// What we made in `foreign`, as `ip` and `nft` list it.
fn foreign_of(node: &Node) -> Result<String> {
    node.exec(
        "bash",
        [
            "-euc",
            "ip -br link | grep foreign | cut -c1-40; ip -br addr show dev foreign-br; ip -4 -br addr show dev eth0
            ip route show proto 99; ip route show proto static; ip -6 route show proto 99; ip rule; ip route show table 99
            nft -s list table inet foreign",
        ],
    )
}
