//! The metrics, written anew from the status at each scrape: nothing has to be kept in step.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{rotation::RotationStatus, status::Status};

/// What is counted from the agent's start.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Reconciles by result: `ok` and `error`.
    pub reconciles: BTreeMap<&'static str, u64>,
    /// How long reconciles took, in seconds.
    pub durations: Durations,
    /// When the last reconcile without an error ended, in seconds since the epoch.
    pub last_success_timestamp_seconds: f64,
    /// Changes of the kernel by object and operation.
    pub kernel_changes: BTreeMap<(&'static str, &'static str), u64>,
}

/// Durations from a round that finds nothing to do up to one of thousands of peers.
#[derive(Debug, Clone)]
pub struct Durations(pub Histogram);

impl Default for Durations {
    fn default() -> Self {
        Self(Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]))
    }
}

/// Up to this many peers have series of their own where `peerMetrics` is auto.
const PEERS_WITH_SERIES: usize = 250;

type Labels = Vec<(&'static str, String)>;
type FloatGauge = Gauge<f64, AtomicU64>;

/// The metrics in OpenMetrics text form.
pub fn encode_metrics(status: &Status, counters: &Counters, peer_metrics: Option<bool>) -> String {
    let mut registry = Registry::with_prefix("wg_overlay");
    node_metrics(&mut registry, status);
    reconcile_metrics(&mut registry, counters);
    if peer_metrics.unwrap_or(status.peers.len() <= PEERS_WITH_SERIES) {
        peer_series(&mut registry, status);
    }
    let mut text = String::new();
    // writing to a String can't fail
    let _ = encode(&mut text, &registry);
    text
}

fn node_metrics(registry: &mut Registry, status: &Status) {
    let version = vec![("version", status.version.clone())];
    gauges(registry, "build_info", "The agent's version", [(version, 1)]);
    if let Some(device) = &status.device {
        let labels = vec![("implementation", device.implementation.replace(' ', "_"))];
        gauges(registry, "device_info", "Who implements the WireGuard device", [(labels, 1)]);
        gauges(
            registry,
            "device_mtu_bytes",
            "The MTU of the WireGuard device",
            [(vec![], device.mtu.into())],
        );
    }
    let states = status.peers.iter().map(|p| (format!("{:?}", p.state).to_lowercase(), 1));
    gauges(registry, "peers", "Other nodes by state", sums("state", states));
    let reasons = status.peers.iter().filter_map(|p| p.reason.clone()).map(|reason| (reason, 1));
    gauges(registry, "refusals", "Nodes that are not believed, by reason", sums("reason", reasons));
    let problems = i64::try_from(status.problems.len()).unwrap_or(i64::MAX);
    gauges(registry, "problems", "What keeps this node from being converged", [(vec![], problems)]);
    gauges(registry, "ready", "Whether this node is ready for pods", [(vec![], status.ready.into())]);
    let addresses = status.pods.iter().flat_map(|range| {
        let family = if range.cidr.contains(':') { "ipv6" } else { "ipv4" };
        let row = |state: &str, n: u64| {
            (
                vec![("family", family.to_owned()), ("state", state.to_owned())],
                i64::try_from(n).unwrap_or(i64::MAX),
            )
        };
        let free = range.capacity.map(|capacity| row("free", capacity.saturating_sub(range.used)));
        std::iter::once(row("used", range.used)).chain(free)
    });
    gauges(registry, "ipam_addresses", "Pod addresses of this node", addresses);
    rotation_metrics(registry, &status.rotation);
    let drops = status.guard.drops.iter().map(|(reason, n)| (vec![("reason", reason.clone())], *n));
    counters(registry, "dropped_packets", "Packets that the guards dropped", drops);
}

fn rotation_metrics(registry: &mut Registry, rotation: &RotationStatus) {
    let since = i64::try_from(rotation.key_since).unwrap_or(i64::MAX);
    let help = "When this node's key became its device's";
    gauges(registry, "last_key_change_timestamp_seconds", help, [(vec![], since)]);
    let rotates = rotation.phase.is_some().into();
    gauges(
        registry,
        "key_rotation_in_progress",
        "Whether this node's key is being changed",
        [(vec![], rotates)],
    );
    let results = [("ok", rotation.changed), ("given_up", rotation.given_up)];
    let results = results.map(|(result, n)| (vec![("result", result.to_owned())], n));
    counters(registry, "key_rotations", "Changes of this node's key by result", results);
}

fn reconcile_metrics(registry: &mut Registry, counted: &Counters) {
    let results = counted.reconciles.iter().map(|(result, n)| (vec![("result", (*result).to_owned())], *n));
    counters(registry, "reconciles", "Reconciles by result", results);
    let changes = counted.kernel_changes.iter().map(|((object, operation), n)| {
        (vec![("object", (*object).to_owned()), ("operation", (*operation).to_owned())], *n)
    });
    counters(registry, "kernel_changes", "Changes made to the kernel", changes);
    registry.register("reconcile_duration_seconds", "How long reconciles took", counted.durations.0.clone());
    seconds(
        registry,
        "last_reconcile_success_timestamp_seconds",
        "When the last reconcile without an error ended",
        counted.last_success_timestamp_seconds,
    );
}

fn peer_series(registry: &mut Registry, status: &Status) {
    let programmed = || status.peers.iter().filter(|p| p.public_key.is_some());
    let node = |p: &crate::status::PeerStatus| vec![("node", p.node.clone())];
    let info = programmed().map(|p| {
        let mut labels = node(p);
        labels.push(("public_key", p.public_key.clone().unwrap_or_default()));
        labels.push(("endpoint", p.endpoint.clone().unwrap_or_default()));
        (labels, 1)
    });
    gauges(registry, "peer_info", "A peer's key and endpoint", info);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let handshakes = programmed().filter_map(|p| {
        let age = p.handshake_age_seconds?;
        Some((node(p), i64::try_from(now.saturating_sub(age)).unwrap_or_default()))
    });
    gauges(registry, "peer_last_handshake_timestamp_seconds", "When a peer's last handshake was", handshakes);
    let received = programmed().map(|p| (node(p), p.received_bytes));
    counters(registry, "peer_receive_bytes", "Bytes received from a peer", received);
    let sent = programmed().map(|p| (node(p), p.sent_bytes));
    counters(registry, "peer_transmit_bytes", "Bytes sent to a peer", sent);
}

fn gauges(registry: &mut Registry, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, i64)>) {
    let family = Family::<Labels, Gauge>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).set(value);
    }
    registry.register(name, help, family);
}

fn counters(registry: &mut Registry, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, u64)>) {
    let family = Family::<Labels, Counter>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).inc_by(value);
    }
    registry.register(name, help, family);
}

fn seconds(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = FloatGauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn sums(label: &'static str, rows: impl Iterator<Item = (String, i64)>) -> Vec<(Labels, i64)> {
    let mut sums = BTreeMap::<String, i64>::new();
    for (value, n) in rows {
        *sums.entry(value).or_default() += n;
    }
    sums.into_iter().map(|(value, n)| (vec![(label, value)], n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PeerState, PeerStatus};

    fn peer(node: usize) -> PeerStatus {
        PeerStatus {
            node: format!("n{node}"),
            state: PeerState::Up,
            public_key: Some("k".into()),
            endpoint: None,
            annotated: false,
            allowed_ips: vec![],
            handshake_age_seconds: Some(3),
            received_bytes: 7,
            sent_bytes: 8,
            note: None,
            reason: None,
        }
    }

    #[test]
    fn the_documented_names_are_there() {
        let mut status = Status::new("w", true);
        status.peers = vec![peer(1)];
        status.rotation = RotationStatus {
            phase: Some("away".into()),
            key_since: 1_700_000_000,
            given_up: 2,
            ..RotationStatus::default()
        };
        let counted = Counters {
            reconciles: BTreeMap::from([("ok", 2)]),
            kernel_changes: BTreeMap::from([(("peer", "set"), 1)]),
            ..Counters::default()
        };
        let text = encode_metrics(&status, &counted, None);
        for line in [
            "wg_overlay_peers{state=\"up\"} 1",
            "wg_overlay_reconciles_total{result=\"ok\"} 2",
            "wg_overlay_kernel_changes_total{object=\"peer\",operation=\"set\"} 1",
            "wg_overlay_peer_receive_bytes_total{node=\"n1\"} 7",
            "wg_overlay_last_reconcile_success_timestamp_seconds 0.0",
            "wg_overlay_last_key_change_timestamp_seconds{} 1700000000",
            "wg_overlay_key_rotation_in_progress{} 1",
            "wg_overlay_key_rotations_total{result=\"ok\"} 0",
            "wg_overlay_key_rotations_total{result=\"given_up\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn many_peers_have_no_series_unless_asked_for() {
        let mut status = Status::new("w", true);
        status.peers = (0..=PEERS_WITH_SERIES).map(peer).collect();
        assert!(!encode_metrics(&status, &Counters::default(), None).contains("peer_info"));
        assert!(encode_metrics(&status, &Counters::default(), Some(true)).contains("peer_info"));
    }
}
