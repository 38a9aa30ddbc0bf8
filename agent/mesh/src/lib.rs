//! The decisions of wg-overlay, as pure functions.
//!
//! [`decide`] reads what the cluster says ([`ClusterView`]) and what the kernel holds ([`ObservedState`]) and gives
//! the [`DesiredState`] of this node with a [`Refusal`] for each Node that may not be believed. [`plan`] compares
//! desired with observed and gives the [`Plan`]: an ordered list of [`Step`]s. Nothing here reads a clock, a file or
//! a socket: time, DNS answers and the kernel's state are arguments, so every rule is tested without a kernel.

use std::net::{Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};

mod advertisement;
mod basis;
mod claim;
mod cluster;
mod conflict;
mod decide;
mod endpoint;
mod firewall;
mod index;
mod key;
mod mesh;
mod mtu;
mod nets;
mod observed;
mod plan;
mod prefix;
mod reach;
mod refusal;
mod render;
mod renew;
mod rotation;
mod settings;
mod state;
mod step;

pub use advertisement::{Advertisement, AdvertisementError, annotation};
pub use cluster::{Cluster, ClusterView, NodeRecord, PackedView};
pub use decide::{Decision, decide, underlay_link};
pub use endpoint::{EndpointError, EndpointSource, EndpointSpec};
pub use firewall::{PORT_RULESET, UNANSWERED, UNANSWERED_SETS, ruleset};
pub use key::{KeyError, PublicKey};
pub use mesh::{Changes, Mesh, Part, Touched};
pub use mtu::{IPV6_MINIMUM_MTU, WIREGUARD_OVERHEAD, overlay_mtu};
pub use nets::IpNets;
pub use observed::{
    HostChain, HostChainState, Implementation, ObservedBridge, ObservedDevice, ObservedFirewall,
    ObservedNext, ObservedPeer, ObservedRoute, ObservedState, Underlay, UnderlayLink, UnderlayRoute,
};
pub use plan::{cleanup, plan, plan_touched};
pub use prefix::{first_host, overlaps};
pub use refusal::{LocalProblem, Reason, Refusal};
pub use renew::renewals;
pub use rotation::{Pair, ROTATION_KEEPALIVE, Rotation};
pub use settings::{KeepaliveSetting, Local, MtuSetting, Resolved, Settings};
pub use state::{
    DesiredBridge, DesiredDevice, DesiredNext, DesiredPeer, DesiredRoute, DesiredState, Firewall, Link,
};
pub use step::{PeerChange, Plan, Step};

/// The name of the WireGuard device.
pub const DEVICE: &str = "wgo0";
/// The name of the second WireGuard device, which is there while a key rotates.
pub const NEXT_DEVICE: &str = "wgo1";
/// The name of the bridge that pods are attached to.
pub const BRIDGE: &str = "wgobr0";
/// The bridge's link-local address, where pods have IPv6. The kernel makes one too, but checks it for duplicates once the
/// first pod is there, and resolves no neighbour for forwarded packets until then (net/ipv6/ndisc.c, ndisc_send_ns).
pub const BRIDGE_LINK_LOCAL: IpNet =
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 64));
/// The ifalias that marks a link as ours.
pub const ALIAS: &str = "wg-overlay";
/// The route protocol number that marks a route as ours (`rtm_protocol`, include/uapi/linux/rtnetlink.h).
pub const ROUTE_PROTOCOL: u8 = 87;
/// The nftables tables, of the families `inet` and `bridge`, that hold every rule of ours.
pub const TABLE: &str = "wg-overlay";
/// The metric of the unreachable routes: the kernel's largest, below any other route of the same prefix.
pub const UNREACHABLE_METRIC: u32 = u32::MAX;
/// The port WireGuard listens on when nothing else is said.
pub const DEFAULT_LISTEN_PORT: u16 = 51820;

/// The port that a node's second device listens on: beside that of the first.
pub const fn next_port(listen_port: u16) -> u16 {
    if listen_port == u16::MAX { listen_port - 1 } else { listen_port + 1 }
}

/// Where the second device of the node behind a socket is reached.
pub(crate) fn next_socket(socket: SocketAddr) -> SocketAddr {
    SocketAddr::new(socket.ip(), next_port(socket.port()))
}
