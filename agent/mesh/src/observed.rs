//! What the kernel of this node holds, as it was read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use crate::{IpNets, Link, PublicKey};

/// Everything of ours that was found on this node, and the underlay beneath it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedState {
    /// The WireGuard device, if its link exists.
    pub device: Option<ObservedDevice>,
    /// The second device, if its link exists.
    pub next: Option<ObservedNext>,
    /// The bridge, if its link exists.
    pub bridge: Option<ObservedBridge>,
    /// Our unreachable routes.
    pub unreachable: BTreeSet<IpNet>,
    /// The device's peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
    /// Our routes into the tunnel (by their protocol number).
    pub routes: BTreeMap<IpNet, ObservedRoute>,
    /// Our nftables table, if it exists.
    pub firewall: Option<ObservedFirewall>,
    /// The rules of our table on the bridge's ports as they were last applied, if the kernel still holds exactly those; empty
    /// otherwise. `None` where there is no such table.
    pub port_guard: Option<String>,
    /// Chains of the host's own firewall that would drop our traffic or hold a rule of ours.
    pub host_chains: BTreeMap<HostChain, HostChainState>,
    /// Bridge addresses that pods of an earlier PodCIDR still use as their gateway.
    pub addresses_in_use: BTreeSet<IpNet>,
    /// The links and routes that are not ours.
    pub underlay: Underlay,
}

/// The WireGuard device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Kernel or user space.
    pub implementation: Implementation,
    /// Whether it carries our ifalias.
    pub marked: bool,
    /// Whether it is up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses, those of link scope left out but for [`crate::BRIDGE_LINK_LOCAL`].
    pub addresses: BTreeSet<IpNet>,
    /// The public half of its key; `None` where none is set.
    pub public_key: Option<PublicKey>,
    /// The port it listens on; 0 where it has none.
    pub listen_port: u16,
}

/// The second WireGuard device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNext {
    /// The device itself.
    pub device: ObservedDevice,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// Who implements the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// The kernel's module.
    Kernel,
    /// The `wg-overlay device` process, over a TUN device.
    UserSpace,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::UserSpace => "user space",
        })
    }
}

/// The bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBridge {
    /// Whether it carries our ifalias.
    pub marked: bool,
    /// Whether it is up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses, those of link scope left out but for [`crate::BRIDGE_LINK_LOCAL`].
    pub addresses: BTreeSet<IpNet>,
    /// Whether bridged IPv4 and IPv6 packets pass netfilter; `None` where the kernel has no br_netfilter.
    pub netfilter: Option<bool>,
}

/// A peer as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedPeer {
    /// Where the kernel sends to: it follows the peer (roaming).
    pub endpoint: Option<SocketAddr>,
    /// The advertised endpoint that this agent wrote last, or let be where it found the peer at its start.
    pub written_endpoint: Option<SocketAddr>,
    /// Its allowed IPs.
    pub allowed_ips: IpNets,
    /// Seconds between keepalives; 0 is none.
    pub keepalive: u16,
    /// Whether a preshared key is set; we set none.
    pub preshared_key: bool,
    /// How long ago the last handshake was; `None` where there was none.
    pub handshake_age: Option<Duration>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

impl ObservedPeer {
    /// Whether a session with it may be in use: WireGuard makes a new one every 120 s while packets flow and gives the old
    /// one up after 180 s (REJECT_AFTER_TIME, WireGuard paper, section 6.1).
    pub fn has_session(&self) -> bool {
        self.handshake_age.is_some_and(|age| age < Duration::from_secs(180))
    }
}

/// A route of ours as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedRoute {
    /// The device it leads into; `None` where it is left from a device of before.
    pub through: Option<Link>,
    /// Its preferred source.
    pub source: Option<IpAddr>,
    /// Its MTU metric in bytes.
    pub mtu: Option<u32>,
}

/// Our nftables table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedFirewall {
    /// The rules as they were last applied, if the kernel still holds exactly those; empty otherwise.
    pub ruleset: String,
    /// The elements of its endpoint sets.
    pub endpoints: BTreeSet<SocketAddr>,
}

/// A base chain of the host's own firewall.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostChain {
    /// An nftables base chain; iptables-nft's among them.
    Nft {
        /// `ip`, `ip6` or `inet`.
        family: String,
        /// The table's name.
        table: String,
        /// The chain's name.
        chain: String,
        /// Whether it hooks `input` (otherwise `forward`).
        input: bool,
    },
    /// A chain of the legacy iptables' filter table.
    Legacy {
        /// ip6tables-legacy rather than iptables-legacy.
        ipv6: bool,
        /// INPUT rather than FORWARD.
        input: bool,
    },
}

impl fmt::Display for HostChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nft { family, table, chain, .. } => write!(f, "nftables {family} {table} {chain}"),
            Self::Legacy { ipv6, input } => write!(
                f,
                "{} {}",
                if *ipv6 { "ip6tables-legacy" } else { "iptables-legacy" },
                if *input { "INPUT" } else { "FORWARD" }
            ),
        }
    }
}

/// What a host chain means for our traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostChainState {
    /// It would drop our traffic: our rules are missing, or were made for another port.
    Drops,
    /// Our rules are in place and needed.
    Allowed,
    /// Our rules are there and the chain no longer drops: they may go.
    Unneeded,
}

/// What is not ours: the network between the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Underlay {
    /// Links that are up, ours, pods' and loopback left out, by index.
    pub links: BTreeMap<u32, UnderlayLink>,
    /// The unicast routes of the main table that are not ours.
    pub routes: Vec<UnderlayRoute>,
}

/// A link of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayLink {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths, those of link scope left out.
    pub addresses: BTreeSet<IpNet>,
}

/// A route of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayRoute {
    /// Its destination; the default route is of length 0.
    pub destination: IpNet,
    /// The index of the link it leaves by.
    pub link: u32,
    /// Its metric: the smaller wins.
    pub metric: u32,
}

impl Underlay {
    /// The link that packets to this address leave by: the longest matching prefix, then the smallest metric.
    pub fn link_to(&self, ip: &IpAddr) -> Option<&UnderlayLink> {
        self.routes
            .iter()
            .filter(|r| r.destination.contains(ip) && self.links.contains_key(&r.link))
            .max_by_key(|r| (r.destination.prefix_len(), std::cmp::Reverse(r.metric)))
            .and_then(|r| self.links.get(&r.link))
    }

    /// The link that carries this address.
    pub fn link_of(&self, ip: &IpAddr) -> Option<&UnderlayLink> {
        self.links.values().find(|l| l.addresses.iter().any(|a| a.addr() == *ip))
    }
}
