//! What a machine sees of the packets that reach it: nftables sets that remember the sources, the links they came by
//! and the segment sizes asked for. A witness changes no packet.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, Namespace, Node, Pod, eventually, helper};

use crate::cluster::PATIENCE;

/// Whatever programs run in: a node, a pod, a bare namespace.
pub trait Machine {
    /// Runs a program to its end and gives its output.
    fn run(&self, program: &str, args: &[&str]) -> Result<String>;

    /// Applies the text of a ruleset.
    fn nft(&self, ruleset: &str) -> Result<()> {
        self.run("nft", &[ruleset]).map(drop)
    }
}

impl Machine for Namespace {
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.exec(program, args)
    }
}

impl Machine for Node {
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.exec(program, args)
    }
}

impl Machine for Pod {
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.exec(program, args)
    }
}

/// Begins, or begins anew, to remember who reaches a machine with pings, connections and UDP.
pub fn watch(machine: &impl Machine) -> Result<()> {
    machine.nft(
        "add table inet witness
        delete table inet witness
        table inet witness {
            set v4 { typeof ip saddr . meta iifname; flags dynamic; size 64; }
            set v6 { typeof ip6 saddr . meta iifname; flags dynamic; size 64; }
            set mss4 { typeof tcp option maxseg size; flags dynamic; size 64; }
            set mss6 { typeof tcp option maxseg size; flags dynamic; size 64; }
            chain input { type filter hook input priority -150; policy accept;
                icmp type echo-request add @v4 { ip saddr . meta iifname }
                icmpv6 type echo-request add @v6 { ip6 saddr . meta iifname }
                tcp flags & syn == syn meta nfproto ipv4 add @v4 { ip saddr . meta iifname }
                tcp flags & syn == syn meta nfproto ipv6 add @v6 { ip6 saddr . meta iifname }
                meta l4proto udp meta nfproto ipv4 add @v4 { ip saddr . meta iifname }
                meta l4proto udp meta nfproto ipv6 add @v6 { ip6 saddr . meta iifname }
                tcp flags & syn == syn meta nfproto ipv4 add @mss4 { tcp option maxseg size }
                tcp flags & syn == syn meta nfproto ipv6 add @mss6 { tcp option maxseg size }
            }
        }",
    )
}

/// The sources of a family that were seen, each with the link it came by.
pub fn seen(machine: &impl Machine, ipv6: bool) -> Result<BTreeSet<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let elements = elements(machine, if ipv6 { "v6" } else { "v4" })?;
    Ok(elements.iter().map(|e| (text(&e["concat"][0]), text(&e["concat"][1]))).collect())
}

/// The maximum segment sizes that connections of a family asked for, in both of their first packets.
pub fn segment_sizes(machine: &impl Machine, ipv6: bool) -> Result<BTreeSet<u64>> {
    let elements = elements(machine, if ipv6 { "mss6" } else { "mss4" })?;
    elements.iter().map(|e| e.as_u64().with_context(|| format!("a segment size: {e}"))).collect()
}

/// That a ping from `from` to `target` is answered and reaches `at` with this source, by this link, and no other.
pub fn arrives_as(
    from: &impl Machine,
    target: &str,
    at: &impl Machine,
    source: &str,
    link: &str,
) -> Result<()> {
    watch(at)?;
    eventually(PATIENCE, &format!("{target} answers"), || ping(from, target))?;
    let seen = seen(at, source.contains(':'))?;
    let expected = BTreeSet::from([(source.to_owned(), link.to_owned())]);
    ensure!(seen == expected, "{target} saw {seen:?}, not {expected:?}");
    Ok(())
}

/// One ping, answered within a second.
pub fn ping(from: &impl Machine, target: &str) -> Result<()> {
    from.run("ping", &["-n", "-c1", "-W1", target]).map(drop)
}

/// One TCP connection, made within two seconds. The listener is a matter of `listen`.
pub fn connect(from: &impl Machine, ip: &str, port: u16) -> Result<()> {
    from.run("timeout", &["2", "bash", "-c", &format!("exec 3<>/dev/tcp/{ip}/{port}")]).map(drop)
}

/// Takes connections in a pod from now on.
pub fn listen(lab: &Lab, pod: &Pod, port: u16) -> Result<()> {
    let log = lab.folder().join(format!("logs/{}-{}-listen{port}.log", pod.node(), pod.name()));
    pod.spawn(pod.command(helper("prober")?).arg("listen").arg(port.to_string()), &log)?;
    eventually(PATIENCE, &format!("{pod} listens on {port}"), || {
        let said = std::fs::read_to_string(&log)?;
        ensure!(said.contains("listening"), "{said}");
        Ok(())
    })
}

fn elements(machine: &impl Machine, set: &str) -> Result<Vec<Value>> {
    let text = machine.run("nft", &["-j", "list", "set", "inet", "witness", set])?;
    let listing: Value = serde_json::from_str(&text).context("parse nft's JSON")?;
    let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let set = objects.iter().find_map(|o| o.get("set")).context("nft lists no set")?;
    Ok(set["elem"].as_array().cloned().unwrap_or_default())
}
