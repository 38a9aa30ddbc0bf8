//! Every row of the report: what it answers, in which unit, and what is asked of it. A row whose part doesn't run is in
//! the report all the same, as skipped.

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Nothing: it is only told.
    Report,
    /// Ours over the baseline, at most.
    RatioAtMost(f64),
    /// Ours over the baseline, at least.
    RatioAtLeast(f64),
    /// The same, and the lower 90 % bound of the paired ratios is at least 1.
    BoundedRatioAtLeast(f64),
    /// Our own figure, at most.
    AtMost(f64),
    /// Our own figure, exactly.
    Exactly(f64),
}

/// A part of the bench that is run as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// The CNI plugin against bridge + host-local, and against `ip -batch`.
    Plugin,
    /// Address allocation against host-local.
    Ipam,
    /// The decisions alone.
    Mesh,
    /// One agent among 5,000 Nodes.
    Scale,
    /// How long a start takes.
    Start,
    /// A handshake's computation.
    Handshake,
    /// User-space devices: throughput, processor time, memory.
    Tunnel,
    /// User-space devices: ping.
    Latency,
    /// Kernel WireGuard in a virtual machine.
    Kernel,
    /// What agents ask of a real API server.
    Api,
}

/// A row of the report.
pub struct Row {
    /// Its name in the JSON.
    pub id: &'static str,
    /// The part that measures it.
    pub group: Group,
    /// What it answers.
    pub what: &'static str,
    /// The unit of both figures.
    pub unit: &'static str,
    /// What is asked.
    pub target: Target,
    /// Whether the smoke run fails by it, beyond twice its target.
    pub smoke: bool,
}

const fn row(
    id: &'static str,
    group: Group,
    unit: &'static str,
    target: Target,
    smoke: bool,
    what: &'static str,
) -> Row {
    Row { id, group, what, unit, target, smoke }
}

use Group::{Api, Handshake, Ipam, Kernel, Latency, Mesh, Plugin, Scale, Start, Tunnel};
use Target::{AtMost, BoundedRatioAtLeast, Exactly, RatioAtLeast, RatioAtMost, Report};

/// All of them, in the report's order.
#[rustfmt::skip] // a table
pub const ROWS: &[Row] = &[
    row("plugin-cpu", Plugin, "ms", RatioAtMost(0.125), true, "CNI ADD+DEL: processor time, children included"),
    row("plugin-wall-serial", Plugin, "ms", RatioAtMost(0.75), true, "CNI ADD+DEL: wall, one after another"),
    row("plugin-wall-32", Plugin, "ms", RatioAtMost(0.75), true, "CNI ADD, then DEL, of 32 at once: wall of all"),
    row("plugin-wall-serial-ip", Plugin, "ms", RatioAtMost(1.15), true, "CNI ADD+DEL: wall, one after another"),
    row("plugin-wall-32-ip", Plugin, "ms", RatioAtMost(1.15), true, "CNI ADD, then DEL, of 32 at once: wall of all"),
    row("plugin-size", Plugin, "MB", AtMost(1.3), false, "plugin: size of the program"),
    row("plugin-rss", Plugin, "MiB", AtMost(3.0), false, "plugin: peak RSS of an ADD, children included"),
    row("ipam-24", Ipam, "ms", RatioAtMost(0.1), true, "reserve on a /24 with 250 held: processor time"),
    row("ipam-64", Ipam, "ms", RatioAtMost(0.1), true, "reserve on a /64 with 10,000 held: processor time"),
    row("plan-one-changed", Mesh, "us", AtMost(200.0), false, "plan() for 5,000 nodes, one changed"),
    row("plan-delta", Mesh, "us", RatioAtMost(2.0), false, "decide() and plan() for one change: 5,000 nodes over 500"),
    row("join", Scale, "ms", RatioAtMost(1.25), false, "join: from the last of 5,000 Nodes in the store to the kernel as desired"),
    row("address-peers", Scale, "peers written", Exactly(1.0), false, "one Node of 5,000 gets another address"),
    row("address-routes", Scale, "routes written", Exactly(0.0), false, "one Node of 5,000 gets another address"),
    row("address-cpu", Scale, "ms", AtMost(1.0), false, "one Node of 5,000 gets another address: agent's processor time"),
    row("new-peers", Scale, "peers written", Exactly(1.0), false, "one Node joins 5,000"),
    row("new-routes", Scale, "routes written", Exactly(2.0), false, "one Node joins 5,000; two families"),
    row("new-cpu", Scale, "ms", AtMost(1.0), false, "one Node joins 5,000: agent's processor time"),
    row("pod-cidr-peers", Scale, "peers written", Exactly(1.0), false, "one Node of 5,000 gets other PodCIDRs"),
    row("pod-cidr-routes", Scale, "routes written", Exactly(4.0), false, "one Node of 5,000 gets other PodCIDRs; two families"),
    row("pod-cidr-cpu", Scale, "ms", AtMost(1.0), false, "one Node of 5,000 gets other PodCIDRs: agent's processor time"),
    row("key-peers", Scale, "peers written", Exactly(2.0), false, "one Node of 5,000 gets another key"),
    row("key-routes", Scale, "routes written", Exactly(0.0), false, "one Node of 5,000 gets another key"),
    row("key-cpu", Scale, "ms", AtMost(1.0), false, "one Node of 5,000 gets another key: agent's processor time"),
    row("heartbeat-messages", Scale, "messages", Exactly(0.0), false, "heartbeats of other Nodes among 5,000: netlink messages"),
    row("heartbeat-cpu", Scale, "us", AtMost(50.0), false, "one heartbeat of another Node among 5,000: agent's processor time"),
    row("resync", Scale, "ms", RatioAtMost(1.5), false, "resync of 5,000 peers, nothing changed"),
    row("resync-writes", Scale, "writes", Exactly(0.0), false, "resync of 5,000 peers, nothing changed: what is written to the kernel"),
    row("agent-rss", Scale, "MiB", AtMost(24.0), false, "agent: RSS at 5,000 nodes after the sync"),
    row("agent-rss-peak", Scale, "MiB", AtMost(32.0), false, "agent: peak RSS at 5,000 nodes"),
    row("agent-idle", Scale, "% of a core", AtMost(0.1), false, "agent: idle, 5,000 nodes, resync each minute, no heartbeats"),
    row("start-2", Start, "ms", Report, false, "agent: start to converged, 2 nodes"),
    row("start-100", Start, "ms", Report, false, "agent: start to converged, 100 nodes"),
    row("start-5000", Start, "ms", Report, false, "agent: start to converged, 5,000 nodes"),
    row("memory-2", Start, "MiB", Report, false, "agent: RSS once converged, 2 nodes"),
    row("memory-100", Start, "MiB", Report, false, "agent: RSS once converged, 100 nodes"),
    row("memory-5000", Start, "MiB", Report, false, "agent: RSS once converged, 5,000 nodes"),
    row("handshake", Handshake, "us", Report, false, "WireGuard handshake in user space, both ends' computation"),
    row("tcp-1", Tunnel, "Gbit/s", BoundedRatioAtLeast(1.2), true, "user-space tunnel: TCP, 1 stream"),
    row("tcp-4", Tunnel, "Gbit/s", RatioAtLeast(1.0), false, "user-space tunnel: TCP, 4 streams"),
    row("udp", Tunnel, "packets/s", RatioAtLeast(1.0), false, "user-space tunnel: UDP, 1,200 B packets received"),
    row("tcp-1-cpu", Tunnel, "Gbit/CPU-s", RatioAtLeast(1.2), false, "user-space tunnel: TCP, 1 stream, for each second of both ends' processor time"),
    row("tunnel-rss", Tunnel, "MiB", RatioAtMost(0.3), false, "user-space tunnel: peak RSS of one end"),
    row("ping-idle-p50", Latency, "ms", RatioAtMost(1.1), false, "user-space tunnel: ping, idle, median"),
    row("ping-idle-p99", Latency, "ms", RatioAtMost(1.1), false, "user-space tunnel: ping, idle, 99th percentile"),
    row("ping-half-p50", Latency, "ms", RatioAtMost(1.1), false, "user-space tunnel: ping at half of the slowest peer's throughput, median"),
    row("ping-half-p99", Latency, "ms", RatioAtMost(1.1), false, "user-space tunnel: ping at half of the slowest peer's throughput, 99th percentile"),
    row("kernel-tunnel", Kernel, "Gbit/s", RatioAtLeast(0.97), false, "kernel tunnel, pod to pod: TCP, 1 stream"),
    row("kernel-bare", Kernel, "Gbit/s", Report, false, "kernel tunnel, pod to pod: TCP, 1 stream, beside WireGuard without pods"),
    row("api-1000", Api, "MiB/hour", Report, false, "API bytes for each agent, 1,000 nodes with kubelets' heartbeats"),
    row("api-5000", Api, "MiB/hour", Report, false, "API bytes for each agent, 5,000 nodes with kubelets' heartbeats"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_rows_have_one_name() {
        let ids: BTreeSet<_> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), ROWS.len());
    }

    #[test]
    fn the_smoke_run_fails_by_ratios_only() {
        let ratio = |target| matches!(target, RatioAtMost(_) | RatioAtLeast(_) | BoundedRatioAtLeast(_));
        assert!(ROWS.iter().filter(|row| row.smoke).all(|row| ratio(row.target)));
    }
}
