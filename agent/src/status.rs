//! What a node tells of itself: the agent fills it, `wg-overlay status`, the metrics and the probes read it.

mod overview;
mod pairs;
mod peers;
mod render;

use serde::{Deserialize, Serialize};

use crate::rotation::RotationStatus;

pub use overview::{AGENT_LABELS, Answer, Collector, Condition, Overview, Show, render_overview};
pub use pairs::{Pair, Says};
pub use peers::{PeerState, PeerTracker};
pub use render::{duration, render};

/// The whole status of a node's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The name of the Node.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// How far it is, and why not further.
    pub state: State,
    /// Whether this node's own device, guards and valid peers are programmed, and pods are attached.
    pub ready: bool,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// What a person should know and nobody need repair, a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The WireGuard device, once it exists.
    pub device: Option<DeviceStatus>,
    /// How a change of its key goes; an agent of an earlier version says nothing of it.
    #[serde(default)]
    pub rotation: RotationStatus,
    /// The node's PodCIDRs.
    pub pods: Vec<PodRange>,
    /// Pods that still hold addresses of an earlier PodCIDR, as container id and interface.
    pub pods_on_old_cidrs: Vec<String>,
    /// What keeps pod packets from leaving unencrypted.
    pub guard: GuardStatus,
    /// The CNI plugin.
    pub cni: CniStatus,
    /// The other nodes, believed or refused.
    pub peers: Vec<PeerStatus>,
}

/// How far an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It has done nothing yet.
    NotStarted,
    /// The API server has not given a full list of Nodes yet.
    WaitingForNodes,
    /// Its Node has no PodCIDR yet.
    WaitingForPodCidr,
    /// It is changing the kernel.
    Reconciling,
    /// The kernel is as desired.
    Converged,
    /// Something can't be done; `problems` says what.
    Degraded,
}

/// The WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// `kernel` or `user space`.
    pub implementation: String,
    /// The UDP port it listens on.
    pub listen_port: u16,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The underlay link and its MTU in bytes.
    pub underlay: Option<(String, u32)>,
    /// Its public key.
    pub public_key: String,
}

/// Addresses of a PodCIDR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRange {
    /// The PodCIDR.
    pub cidr: String,
    /// Addresses that pods hold.
    pub used: u64,
    /// Addresses that pods can have; `None` where there are more than anybody counts.
    pub capacity: Option<u64>,
}

/// The guards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardStatus {
    /// Whether pod packets outside the tunnel are dropped.
    pub fail_closed: bool,
    /// The prefixes that are guarded.
    pub prefixes: Vec<String>,
    /// Packets dropped since the table was made, by reason.
    pub drops: std::collections::BTreeMap<String, u64>,
}

/// The drop that tells of no pod: handshakes of this node's own, over what an address gets that doesn't answer.
pub const HANDSHAKES: &str = "handshakes_over_limit";

/// The CNI plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniStatus {
    /// Whether pods are attached.
    pub ready: bool,
    /// The plugins chained after ours.
    pub chained: Vec<String>,
    /// Chained plugins that binDir lacks.
    pub missing: Vec<String>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The name of its Node.
    pub node: String,
    /// How it is.
    pub state: PeerState,
    /// Its public key, where it is programmed.
    pub public_key: Option<String>,
    /// Where packets to it are sent.
    pub endpoint: Option<String>,
    /// Whether a person annotated that endpoint.
    pub annotated: bool,
    /// Its allowed IPs.
    pub allowed_ips: Vec<String>,
    /// Seconds since the last handshake.
    pub handshake_age_seconds: Option<u64>,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Why it is refused, or what to look at.
    pub note: Option<String>,
    /// The reason of a refusal in one word.
    pub reason: Option<String>,
}

impl PeerStatus {
    /// A node that nothing more is known of.
    pub fn new(node: &str, state: PeerState) -> Self {
        Self {
            node: node.to_owned(),
            state,
            public_key: None,
            endpoint: None,
            annotated: false,
            allowed_ips: Vec::new(),
            handshake_age_seconds: None,
            received_bytes: 0,
            sent_bytes: 0,
            note: None,
            reason: None,
        }
    }
}

impl Status {
    /// The status before anything is known.
    pub fn new(node: &str, fail_closed: bool) -> Self {
        Self {
            node: node.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: State::NotStarted,
            ready: false,
            problems: Vec::new(),
            notes: Vec::new(),
            device: None,
            rotation: RotationStatus::default(),
            pods: Vec::new(),
            pods_on_old_cidrs: Vec::new(),
            guard: GuardStatus { fail_closed, prefixes: Vec::new(), drops: Default::default() },
            cni: CniStatus { ready: false, chained: Vec::new(), missing: Vec::new() },
            peers: Vec::new(),
        }
    }
}
