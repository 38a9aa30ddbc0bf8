//! A prober on every node: each sends 100 numbered packets a second and family to each other, which
//! sends them back. Orders reach it through its own node's network: they need neither the API server
//! nor the kubelet nor containerd.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Cluster, NAMESPACE, pod};
use crate::lab::PairReport;

const CONTROL_PORT: u16 = 7008;
/// Longer than anything on a busy machine delays a packet: what is not back by then was dropped.
const PATIENCE_MILLIS: u64 = 10_000;
/// Packets of a pair that may be on their way when it is asked: a second's.
const UNDER_WAY: u64 = 100;

/// The running probers.
pub struct Probers {
    cluster: Cluster,
    /// By node, the addresses of its prober.
    pods: BTreeMap<String, Vec<IpAddr>>,
}

impl Probers {
    /// Starts one on each node, or finds those that run, and waits until all pairs have answers.
    ///
    /// # Errors
    /// One does not start, or a pair has no answers within two minutes: the error names it.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        pod::create_namespace(cluster)?;
        cluster.send("apply", &daemon_set())?;
        cluster.await_rollout(NAMESPACE, "prober")?;
        let mut probers = Self { cluster: cluster.clone(), pods: BTreeMap::new() };
        probers.find()?;
        let all: Vec<String> = probers.pods.keys().cloned().collect();
        probers.await_answers(&all)?;
        // What is lost later is a fault's doing only if nothing is lost without it.
        probers.cluster.eventually(300, "this machine loses nothing by itself: it is too busy", || {
            probers.reset()?;
            probers.await_packets(&all, 300)?;
            match probers.report(&all)?.iter().find(|pair| pair.sent > pair.received + UNDER_WAY) {
                Some(p) => bail!("{} to {}: {} of {} came back", p.from, p.to, p.received, p.sent),
                None => Ok(()),
            }
        })?;
        probers.reset()?;
        Ok(probers)
    }

    /// Waits until a node's prober runs, as the API has it.
    ///
    /// # Errors
    /// It doesn't within three minutes.
    pub fn await_ready(&self, node: &str) -> Result<()> {
        self.cluster.eventually(180, &format!("{node} has a prober"), || {
            let field = format!("spec.nodeName={node}");
            let words = ["-n", NAMESPACE, "pods", "-l", "app=prober", "--field-selector", &field];
            let pods = self.cluster.list(&words)?;
            ensure!(pods.iter().any(is_ready), "{} pods, none is ready", pods.len());
            Ok(())
        })
    }

    /// Reads the probers' addresses anew and tells each prober of them.
    ///
    /// # Errors
    /// A node has none, or it can't be reached.
    pub fn find(&mut self) -> Result<()> {
        let pods = self.cluster.list(&["-n", NAMESPACE, "pods", "-l", "app=prober"])?;
        self.pods.clear();
        for pod in pods.iter().filter(|pod| is_ready(pod)) {
            let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            let ips = pod::addresses(pod).iter().filter_map(|ip| ip.parse().ok()).collect();
            self.pods.insert(node.to_owned(), ips);
        }
        let nodes = self.cluster.nodes()?;
        ensure!(nodes.iter().all(|node| self.pods.contains_key(node)), "probers: {:?}", self.pods.keys());
        for node in self.pods.keys() {
            let others = self.pods.iter().filter(|(other, _)| *other != node).flat_map(|(_, ips)| ips);
            let others: Vec<String> = others.map(IpAddr::to_string).collect();
            self.order(node, &format!("targets {}", others.join(" ")))?;
        }
        Ok(())
    }

    /// Counts from now on.
    ///
    /// # Errors
    /// A prober can't be reached.
    pub fn reset(&self) -> Result<()> {
        self.pods.keys().try_for_each(|node| self.order(node, "reset").map(drop))
    }

    /// Waits until every pair of these nodes has had an answer since the last reset.
    ///
    /// # Errors
    /// One has none within two minutes.
    pub fn await_answers(&self, nodes: &[String]) -> Result<()> {
        self.cluster.eventually(120, "packets flow between all nodes", || {
            for pair in self.report(nodes)? {
                ensure!(pair.received > 0, "{} to {} ({}): no answer", pair.from, pair.to, pair.target);
            }
            Ok(())
        })
    }

    /// Waits until every pair of these nodes has had so many answers more; with the patience of the
    /// probers over, what was lost before is known.
    ///
    /// # Errors
    /// One has not within two minutes.
    pub fn await_packets(&self, nodes: &[String], packets: u64) -> Result<()> {
        let key = |pair: &PairReport| (pair.from.clone(), pair.target);
        let before: BTreeMap<_, _> = self.report(nodes)?.iter().map(|p| (key(p), p.received)).collect();
        self.cluster.eventually(120, &format!("{packets} more packets between all nodes"), || {
            for pair in self.report(nodes)? {
                let more = pair.received - before.get(&key(&pair)).copied().unwrap_or_default();
                ensure!(more >= packets, "{} to {}: {more}", pair.from, pair.to);
            }
            Ok(())
        })
    }

    /// That no pair of these nodes has lost a packet since the last reset, and packets flow now.
    ///
    /// # Errors
    /// A loss: the error lists every pair that has one.
    pub fn ensure_lossless(&self, nodes: &[String], during: &str) -> Result<()> {
        // Until what was sent during the fault is lost for certain, if it is lost.
        self.await_packets(nodes, 100 * (PATIENCE_MILLIS / 1000 + 1))?;
        let pairs = self.report(nodes)?;
        let sent: u64 = pairs.iter().map(|pair| pair.sent).sum();
        let lost = PairReport::losses(&pairs);
        println!("  {during}: {} directions, {sent} packets, {} with losses", pairs.len(), lost.len());
        if lost.is_empty() {
            return Ok(());
        }
        // A device that got no processor in time leaves its queue to overflow.
        let queue =
            |node: &String| self.cluster.on(node, &["cat", "/sys/class/net/wgo0/statistics/tx_dropped"]);
        let queues: Vec<String> =
            nodes.iter().map(|n| format!("{n} {}", queue(n).unwrap_or_default().trim())).collect();
        bail!(
            "{during}: lost\n{}\ndropped at wgo0's queue since it is there: {}",
            lost.join("\n"),
            queues.join(", ")
        )
    }

    /// What became of the packets between these nodes.
    ///
    /// # Errors
    /// A prober can't be reached.
    pub fn report(&self, nodes: &[String]) -> Result<Vec<PairReport>> {
        let mut pairs = self.report_to_all(nodes)?;
        pairs.retain(|pair| nodes.contains(&pair.to));
        Ok(pairs)
    }

    /// What became of the packets from these nodes to all.
    ///
    /// # Errors
    /// A prober can't be reached.
    pub fn report_to_all(&self, nodes: &[String]) -> Result<Vec<PairReport>> {
        let mut all = Vec::new();
        for node in nodes {
            for mut pair in self.order(node, "report")? {
                let to = self.pods.iter().find(|(_, ips)| ips.contains(&pair.target));
                pair.from.clone_from(node);
                pair.to = to.map(|(name, _)| name.clone()).unwrap_or_default();
                all.push(pair);
            }
        }
        Ok(all)
    }

    fn order(&self, node: &str, order: &str) -> Result<Vec<PairReport>> {
        let ip = self.pods.get(node).and_then(|ips| ips.first());
        let ip = ip.with_context(|| format!("node {node} has no prober"))?;
        let script = format!(
            "exec 3<>/dev/tcp/{ip}/{CONTROL_PORT}; echo \"$0\" >&3; IFS= read -r -t 20 line <&3; echo \"$line\""
        );
        let answer = self.cluster.on(node, &["timeout", "30", "bash", "-euc", &script, order])?;
        serde_json::from_str(&answer).with_context(|| format!("the prober of {node} said: {answer}"))
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let mut ready = conditions.filter(|c| c.get("type").is_some_and(|kind| kind == "Ready"));
    let deleted = pod.pointer("/metadata/deletionTimestamp").is_some();
    !deleted && ready.any(|c| c.get("status").is_some_and(|status| status == "True"))
}

/// With a share of the processor: starved, it would be the one that loses packets.
fn daemon_set() -> Value {
    let labels = json!({ "app": "prober" });
    let (port, patience) = (CONTROL_PORT.to_string(), PATIENCE_MILLIS.to_string());
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "prober", "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "tolerations": [{ "operator": "Exists" }], "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "prober", "image": "wg-overlay-e2e:dev", "imagePullPolicy": "IfNotPresent",
                        "args": ["run", "--control", port, "--patience", patience],
                        "resources": { "requests": { "cpu": "100m" } },
                        "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } },
                    }],
                },
            },
        },
    })
}
