//! Everything of ours in a node's kernel as a person lists it, in a form that two moments can be compared by: without
//! what changes by itself (counters, handles, endpoints, handshakes).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::converged::PATIENCE;
use crate::lab::{Node, eventually};

/// Lists by what they are of.
pub type Kernel = BTreeMap<String, String>;

/// What the kernel holds at this moment; what is missing says so.
#[must_use]
pub fn kernel(node: &Node) -> Kernel {
    let of = |list: Result<String>| list.unwrap_or_else(|error| format!("none: {}", error.root_cause()));
    let mut all = Kernel::new();
    for link in ["wgo0", "wgobr0"] {
        all.insert(link.to_owned(), of(described(node, link)));
    }
    for family in ["-4", "-6"] {
        let routes = node.exec("ip", [family, "route", "show", "table", "all", "proto", "87"]);
        all.insert(format!("routes {family}"), of(routes.map(|text| sorted(&text))));
    }
    all.insert("wireguard".to_owned(), of(wireguard(node)));
    let rules = node.exec("nft", ["--stateless", "list", "table", "inet", "wg-overlay"]);
    all.insert("rules".to_owned(), of(rules.map(|text| without_handshakes(&text))));
    // without the sets' elements, whose order changes; whether they are there, packets tell
    let ports = node.exec("nft", ["--stateless", "--terse", "list", "table", "bridge", "wg-overlay"]);
    all.insert("ports".to_owned(), of(ports));
    all
}

/// Without the sets that packets fill and time empties.
fn without_handshakes(table: &str) -> String {
    let mut inside = false;
    let kept = table.lines().filter(|line| {
        inside |= line.starts_with("\tset initiations_");
        let kept = !inside;
        inside &= *line != "\t}";
        kept
    });
    kept.map(|line| format!("{line}\n")).collect()
}

/// Waits until the kernel holds this again.
///
/// # Errors
/// It doesn't within `PATIENCE`: the error holds the first difference.
pub fn await_kernel(node: &Node, expected: &Kernel, what: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{}: {what} is repaired", node.name()), || ensure_kernel(node, expected))
}

/// Whether the kernel holds this at this moment.
///
/// # Errors
/// It doesn't: the error holds the first difference.
pub fn ensure_kernel(node: &Node, expected: &Kernel) -> Result<()> {
    for (part, now) in kernel(node) {
        let before = expected.get(&part).map(String::as_str).unwrap_or_default();
        ensure!(now == before, "{part} was\n{before}\nand is\n{now}");
    }
    Ok(())
}

/// A link's state, MTU, mark, hardware address, own addresses, and whether bridged packets pass netfilter.
fn described(node: &Node, name: &str) -> Result<String> {
    let text = node.exec("ip", ["-d", "-j", "addr", "show", "dev", name])?;
    let list: Value = serde_json::from_str(&text).context("parse ip's JSON")?;
    let link = &list[0];
    let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&Value::from("UP")));
    let addresses = link["addr_info"].as_array().map(Vec::as_slice).unwrap_or_default();
    let global = addresses.iter().filter(|address| address["scope"] == "global");
    let mut global: Vec<String> = global.map(|a| format!("{}/{}", a["local"], a["prefixlen"])).collect();
    global.sort();
    let bridged = &link["linkinfo"]["info_data"]["nf_call_iptables"];
    let (mtu, mark, hardware) = (&link["mtu"], &link["ifalias"], &link["address"]);
    Ok(format!("up {up}, mtu {mtu}, alias {mark}, at {hardware}, netfilter {bridged}, {}", global.join(" ")))
}

/// Key, port and peers, each with its preshared key, allowed IPs and keepalive (wg(8), `dump`).
fn wireguard(node: &Node) -> Result<String> {
    let dump = node.exec("wg", ["show", "wgo0", "dump"])?;
    let fields = |line: &str, wanted: &[usize]| -> String {
        let all: Vec<&str> = line.split('\t').collect();
        wanted.iter().map(|at| sorted_list(all.get(*at).copied().unwrap_or_default()) + " ").collect()
    };
    let mut lines = dump.lines();
    let device = fields(lines.next().unwrap_or_default(), &[1, 2]);
    let peers: String = lines.map(|line| fields(line, &[0, 1, 3, 7]) + "\n").collect();
    Ok(format!("{device}\n{}", sorted(&peers)))
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.sort_unstable();
    lines.join("\n")
}

fn sorted_list(text: &str) -> String {
    let mut parts: Vec<&str> = text.split(',').collect();
    parts.sort_unstable();
    parts.join(",")
}
