//! What grows with the number of nodes: formulas in the measured cost of one, and limits that others have set.

use super::handshakes;
use super::measured::Measured;

/// Seconds between a kubelet's writes of its Node's status (KubeletConfiguration: nodeStatusReportFrequency).
pub const HEARTBEAT: f64 = 300.0;
/// Seconds until a session that is used gets new keys (WireGuard: REKEY_AFTER_TIME).
const REKEY: f64 = 120.0;
/// Seconds until an initiation without an answer is repeated (WireGuard: REKEY_TIMEOUT).
const RETRY: f64 = 5.0;
/// Seconds from a node's being ready to its first pod's first packet: assumed.
const POD_START: f64 = 1.0;
/// Neighbours that a host keeps by default (net/core/neighbour.c: gc_thresh3).
const NEIGHBOURS: f64 = 1024.0;
/// Peers that a kernel device takes (drivers/net/wireguard/messages.h: MAX_PEERS_PER_DEVICE).
const DEVICE_PEERS: f64 = 1_048_576.0;
/// Nodes with a /24 each in a /8, the largest private network.
const PREFIXES: f64 = 65_536.0;

/// What is assumed of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Cluster {
    /// What all API servers send together, in bytes a second.
    pub api: f64,
    /// Writes of a Node while it joins.
    pub writes: f64,
    /// The part of all nodes that joins in a storm, within a minute.
    pub storm: f64,
    /// MiB that an agent may take.
    pub memory: f64,
}

/// How agents learn of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Design {
    /// Each watches all Nodes: what is built.
    Nodes,
    /// Each watches a resource of our own, one for each node, that changes only when its content does.
    OwnResource,
    /// The same from a relay in each zone of 1,000 nodes; the API serves the relays alone.
    Relay,
    /// The same, and a node has as peers its own zone's nodes and two gateways of every other zone.
    Zones,
}

impl Design {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nodes, Self::OwnResource, Self::Relay, Self::Zones];

    /// As a person would say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "watch Nodes (as built)",
            Self::OwnResource => "own resource",
            Self::Relay => "own resource, relay in each zone",
            Self::Zones => "own resource, zones with gateways",
        }
    }

    /// Bytes of an event.
    fn event(self, measured: &Measured) -> f64 {
        // Key, addresses, prefixes and their object's metadata.
        if self == Self::Nodes { measured.event } else { 1000.0 }
    }

    /// Who is sent events by the API.
    fn watchers(self, nodes: f64) -> f64 {
        if self == Self::Relay { (nodes / ZONE).ceil() } else { nodes }
    }

    /// Of how many nodes one hears.
    fn known(self, nodes: f64) -> f64 {
        match self {
            Self::Zones if nodes > ZONE => ZONE + GATEWAYS * (nodes / ZONE).ceil(),
            _ => nodes,
        }
    }

    /// Writes of a joining node that are heard.
    fn writes(self, cluster: &Cluster) -> f64 {
        if self == Self::Nodes { cluster.writes } else { 1.0 }
    }
}

const ZONE: f64 = 1000.0;
const GATEWAYS: f64 = 2.0;

/// One cluster of a size.
pub struct Size<'a> {
    /// How many nodes.
    pub nodes: f64,
    /// How they learn of each other.
    pub design: Design,
    /// What one costs.
    pub measured: &'a Measured,
    /// The rest.
    pub cluster: &'a Cluster,
}

impl Size<'_> {
    /// Peers of a node.
    pub fn peers(&self) -> f64 {
        self.design.known(self.nodes) - 1.0
    }

    /// Heartbeats a second that an agent hears.
    pub fn heartbeats(&self) -> f64 {
        if self.design == Design::Nodes { self.peers() / HEARTBEAT } else { 0.0 }
    }

    /// MiB an hour that heartbeats cost an agent.
    pub fn agent_bytes(&self) -> f64 {
        self.heartbeats() * self.design.event(self.measured) * 3600.0 / f64::from(1 << 20)
    }

    /// Gbit/s that all API servers send for heartbeats.
    pub fn api_load(&self) -> f64 {
        self.heartbeats() * self.design.event(self.measured) * self.design.watchers(self.nodes) * 8.0 / 1e9
    }

    /// The agent's part of a core for heartbeats.
    pub fn agent_cpu(&self) -> f64 {
        self.heartbeats() * self.measured.heartbeat
    }

    /// MiB of an agent.
    pub fn memory(&self) -> f64 {
        self.measured.memory.at(self.peers() + 1.0)
    }

    /// Seconds from an agent's start to converged.
    pub fn start(&self) -> f64 {
        self.measured.start.at(self.peers() + 1.0)
    }

    /// Handshakes a second of a node that talks with all its peers, begun or answered.
    pub fn handshakes(&self) -> f64 {
        self.peers() / REKEY
    }

    /// The part of a core that they cost.
    pub fn handshake_cpu(&self) -> f64 {
        self.handshakes() * self.measured.handshake
    }

    /// Seconds that the API takes to send every agent everything anew, as after its own restart.
    pub fn relist(&self) -> f64 {
        let list = self.design.known(self.nodes) * self.design.event(self.measured);
        list * self.design.watchers(self.nodes) / self.cluster.api
    }

    /// Seconds that the last agent is behind at the end of a storm of joins, one minute long.
    pub fn storm_lag(&self) -> f64 {
        let heard = self.cluster.storm * self.design.known(self.nodes) * self.design.writes(self.cluster);
        let bytes = heard * self.design.event(self.measured) * self.design.watchers(self.nodes);
        let agent = self.cluster.storm * self.design.known(self.nodes) * self.measured.join;
        ((bytes / self.cluster.api) - 60.0).max(agent - 60.0).max(0.0)
    }

    /// Seconds that a joining node's first packet to a node waits at worst: an initiation to one that doesn't know the
    /// key yet is lost, and repeated every five seconds.
    pub fn first_packet(&self) -> f64 {
        let late = self.storm_lag() - POD_START;
        if late > 0.0 { (late / RETRY).ceil() * RETRY } else { 0.0 }
    }

    /// When a node is back after a crash and all its peers talk to it.
    pub fn return_storm(&self) -> handshakes::Outcome {
        handshakes::storm(self.peers() as usize, self.measured.handshake)
    }
}

/// A limit, and whether a cluster is within it.
pub type Limit = (&'static str, fn(&Size<'_>) -> bool);

/// What can break.
pub const LIMITS: [Limit; 9] = [
    ("heartbeats take half of what the API servers can send", |size| {
        size.api_load() * 1e9 / 8.0 <= size.cluster.api / 2.0
    }),
    ("after an API server's restart the lists take over 60 s", |size| size.relist() <= 60.0),
    ("a storm of joins leaves agents over 5 s behind", |size| size.storm_lag() <= 5.0),
    ("heartbeats take the agent over 1 % of a core", |size| size.agent_cpu() <= 0.01),
    ("the agent takes over its memory limit", |size| size.memory() <= size.cluster.memory),
    ("handshakes take over 5 % of a core, if it talks with all", |size| size.handshake_cpu() <= 0.05),
    ("a flat underlay's neighbour table is full (gc_thresh3)", |size| size.peers() <= NEIGHBOURS),
    ("no /24 is left in a /8", |size| size.nodes <= PREFIXES),
    ("a kernel device takes no more peers", |size| size.peers() <= DEVICE_PEERS),
];

/// The largest cluster, up to a million nodes, that is within a limit; none where all are.
pub fn largest(is_within: impl Fn(f64) -> bool) -> Option<u32> {
    let within = |nodes: u32| is_within(f64::from(nodes));
    let (mut low, mut high) = (2, 1_000_000);
    if within(high) {
        return None;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        *(if within(middle) { &mut low } else { &mut high }) = middle;
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_within_is_within_and_the_next_is_not(limit in 2_u32..999_999) {
            prop_assert_eq!(largest(|nodes| nodes <= f64::from(limit)), Some(limit));
        }
    }

    #[test]
    fn what_is_always_within_has_no_largest() {
        assert_eq!(largest(|_| true), None);
    }
}
