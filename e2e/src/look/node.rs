//! What a person sees of a node: `wg`, routes, metrics, probes, the log. And Nodes that only the API knows.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::converged::{PATIENCE, status};
use crate::lab::{Lab, Node, PairReport, Pod, Prober, eventually, product};

/// The annotation that holds a node's public key.
pub const KEY: &str = "wg-overlay.io/public-key";
/// That of its overlay addresses.
pub const OVERLAY_IPS: &str = "wg-overlay.io/overlay-ips";
/// That of an endpoint a person chose.
pub const ENDPOINT: &str = "wg-overlay.io/endpoint";

/// What `wg-overlay ARGS` said and how it ended, whatever the status.
#[derive(Debug)]
pub struct Said {
    /// The exit status, if no signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it said on standard error.
    pub err: String,
}

/// Runs `wg-overlay ARGS` on a node.
///
/// # Errors
/// It can't be started.
pub fn wg_overlay(node: &Node, args: &[&str]) -> Result<Said> {
    let mut command = node.namespace().command(product("wg-overlay")?);
    let output = command.args(args).env("KUBECONFIG", "/etc/wg-overlay/kubeconfig").output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// `wg-overlay plan` with the node's configuration.
///
/// # Errors
/// It fails.
pub fn plan(node: &Node) -> Result<String> {
    node.wg_overlay(&["plan", "--config", "/etc/wg-overlay/config.yaml"])
}

/// What `wg` shows of one peer.
#[derive(Debug)]
pub struct WgPeer {
    /// `ADDRESS:PORT`, or `(none)`.
    pub endpoint: String,
    /// Prefixes, in the order of `wg`.
    pub allowed_ips: Vec<String>,
    /// Seconds, or `off`.
    pub keepalive: String,
    /// Received and sent since it was made.
    pub bytes: u64,
}

/// All peers that `wg` shows, by their keys (wg(8), `dump`: key, preshared key, endpoint, allowed IPs, handshake, received,
/// sent, keepalive).
///
/// # Errors
/// There is no device.
pub fn wg_dump(node: &Node) -> Result<BTreeMap<String, WgPeer>> {
    let dump = node.exec("wg", ["show", "wgo0", "dump"])?;
    let peer = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[key, _, endpoint, allowed_ips, _, received, sent, keepalive] = fields.as_slice() else {
            bail!("a line of wg: {line}");
        };
        let peer = WgPeer {
            endpoint: endpoint.to_owned(),
            allowed_ips: allowed_ips.split(',').map(str::to_owned).collect(),
            keepalive: keepalive.to_owned(),
            bytes: received.parse::<u64>()? + sent.parse::<u64>()?,
        };
        Ok((key.to_owned(), peer))
    };
    dump.lines().skip(1).map(peer).collect()
}

/// The peer with this key, if `wg` shows it.
///
/// # Errors
/// There is no device.
pub fn wg_peer(node: &Node, key: &str) -> Result<Option<WgPeer>> {
    Ok(wg_dump(node)?.remove(key))
}

/// How many peers `wg` shows.
///
/// # Errors
/// There is no device.
pub fn wg_peers(node: &Node) -> Result<usize> {
    Ok(node.exec("wg", ["show", "wgo0", "peers"])?.lines().count())
}

/// The key that a Node publishes.
///
/// # Errors
/// There is no such Node, or it publishes none.
pub fn key_of(lab: &Lab, node: &str) -> Result<String> {
    lab.api().annotation(node, KEY)?.with_context(|| format!("Node {node} has no key"))
}

/// Waits until a node's peer is as the check wants it.
///
/// # Errors
/// It isn't within `PATIENCE`.
pub fn await_peer(on: &Node, key: &str, what: &str, check: impl Fn(&WgPeer) -> bool) -> Result<()> {
    eventually(PATIENCE, &format!("{}: {what}", on.name()), || {
        let peer = wg_peer(on, key)?.context("wg shows no such peer")?;
        ensure!(check(&peer), "{peer:?}");
        Ok(())
    })
}

/// Our routes of both families.
///
/// # Errors
/// `ip` fails.
pub fn routes(node: &Node) -> Result<String> {
    Ok(node.exec("ip", ["route", "show", "proto", "87"])?
        + &node.exec("ip", ["-6", "route", "show", "proto", "87"])?)
}

/// The body of a GET on the node itself.
///
/// # Errors
/// Nothing listens, or the answer is no HTTP.
pub fn http(node: &Node, port: u16, path: &str) -> Result<String> {
    let script =
        format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let answer = node.exec("bash", ["-c", &script])?;
    Ok(answer.split_once("\r\n\r\n").with_context(|| format!("{path}: {answer}"))?.1.to_owned())
}

/// Whether the node's agent is ready.
///
/// # Errors
/// It is not: the error holds why.
pub fn ensure_ready(node: &Node) -> Result<()> {
    let answer = http(node, 9821, "/readyz")?;
    ensure!(answer == "ok\n", "{} is not ready: {answer}", node.name());
    Ok(())
}

/// The sum of all series of a metric that begin so; 0 where there is none.
///
/// # Errors
/// The agent doesn't answer.
pub fn metric(node: &Node, series: &str) -> Result<f64> {
    let text = http(node, 9820, "/metrics")?;
    let values = text.lines().filter(|line| line.starts_with(series));
    Ok(values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// One node as another's status shows it.
///
/// # Errors
/// The agent doesn't answer, or knows no such node.
pub fn shown(on: &Node, name: &str) -> Result<Value> {
    let status = status(on)?;
    let mut peers = status["peers"].as_array().into_iter().flatten();
    let peer = peers.find(|peer| peer["node"] == name).cloned();
    peer.with_context(|| format!("{} does not show {name}: {}", on.name(), status["state"]))
}

/// Waits until two full rounds of the agent have ended: whatever it does at a resync, it has done.
///
/// # Errors
/// They don't within `PATIENCE`.
pub fn await_rounds(node: &Node) -> Result<()> {
    let before = metric(node, "wg_overlay_reconciles_total")?;
    eventually(PATIENCE, &format!("{} reconciles twice", node.name()), || {
        let after = metric(node, "wg_overlay_reconciles_total")?;
        ensure!(after >= before + 2.0, "{before} then {after}");
        Ok(())
    })
}

/// A prober between pods whose packets flow.
///
/// # Errors
/// A pair has no answer within `PATIENCE`.
pub fn probing(lab: &Lab, pods: &[&Pod]) -> Result<Prober> {
    let mut prober = lab.prober(pods)?;
    prober.await_flow(PATIENCE)?;
    Ok(prober)
}

/// Waits for some more packets, and none since the last reset may be lost.
///
/// # Errors
/// One was.
pub fn ensure_lossless(prober: &mut Prober, during: &str) -> Result<()> {
    prober.await_packets(30, PATIENCE)?;
    let losses = PairReport::losses(&prober.report()?);
    ensure!(losses.is_empty(), "{during}:\n{}", losses.join("\n"));
    Ok(())
}

/// A Node that only the API knows, as its agent would have published it, on the underlay's address 172.30.0.NUMBER.
#[must_use]
pub fn made_up(name: &str, number: u8) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": name, "annotations": {
            (KEY): made_up_key(number),
            (OVERLAY_IPS): format!("10.244.{number}.1,fd00:244:0:{number:x}::1"),
            "wg-overlay.io/listen-port": "51820",
        }},
        "spec": { "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number:x}::/64")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("172.30.0.{number}") }] },
    })
}

/// A key that no device has.
#[must_use]
pub fn made_up_key(number: u8) -> String {
    let mut bytes = [number; 32];
    bytes[0] = 0xa5;
    BASE64_STANDARD.encode(bytes)
}

/// Creates a Node as it is, annotations and addresses among it.
///
/// # Errors
/// The API refuses.
pub fn create_node(lab: &Lab, node: &Value) -> Result<()> {
    lab.api().create("/api/v1/nodes", node).map(drop)
}

/// Gives a node's resolver one name more than localhost.
///
/// # Errors
/// The file can't be written.
pub fn hosts(node: &Node, line: &str) -> Result<()> {
    let text = format!("127.0.0.1 localhost\n{line}\n");
    std::fs::write(node.path("/etc/hosts"), text).context("write /etc/hosts")
}
