//! What decisions are made for: this node, and what a person configured.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{PublicKey, Rotation};

/// What a person configured, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The pod networks of the whole cluster: nothing outside is believed.
    pub cluster_cidrs: BTreeSet<IpNet>,
    /// Further prefixes that overlay addresses may come from.
    pub overlay_cidrs: BTreeSet<IpNet>,
    /// Prefixes that no PodCIDR may overlap, and what each is: the service range, the API server.
    pub reserved: Vec<(IpNet, String)>,
    /// The port WireGuard listens on.
    pub listen_port: u16,
    /// The overlay's MTU.
    pub mtu: MtuSetting,
    /// The keepalive towards peers.
    pub keepalive: KeepaliveSetting,
    /// Whether pod traffic to the outside takes the node's address.
    pub masquerade: bool,
    /// Outside prefixes that see pod addresses.
    pub non_masquerade: BTreeSet<IpNet>,
    /// Whether pod packets outside the tunnel are dropped.
    pub fail_closed: bool,
}

/// The overlay's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtuSetting {
    /// The underlay's less [`crate::WIREGUARD_OVERHEAD`].
    Auto,
    /// This many bytes.
    Fixed(u32),
}

/// The keepalive towards peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepaliveSetting {
    /// 25 s where the endpoint is annotated or external, else none.
    Auto,
    /// This many seconds; 0 is none.
    Fixed(u16),
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The name of its Node.
    pub node_name: String,
    /// The public half of its key.
    pub public_key: PublicKey,
    /// The public half of the key it changes to next; `None` where it can't change it without loss.
    pub next_key: Option<PublicKey>,
    /// How far that change has come.
    pub rotation: Option<Rotation>,
    /// The largest MTU that its device can have, in bytes.
    pub max_mtu: u32,
    /// What a person configured.
    pub settings: Settings,
    /// Which Node held which prefix at the last decision; empty at the start.
    pub holders: BTreeMap<IpNet, Arc<str>>,
    /// Which Node held which key when that was last written down: it counts where the kernel has no peer with the key.
    pub key_holders: BTreeMap<PublicKey, Arc<str>>,
}

/// The answers of this node's resolver: addresses by lower-case name, the last good answer where there is none now.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;
