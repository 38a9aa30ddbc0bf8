//! The changes of the kernel that a plan consists of, and their order.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use ipnet::IpNet;

use crate::{DesiredRoute, HostChain, Link, PublicKey};

/// The steps that make the kernel as desired, in the order in which they are safe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, to be carried out one after another.
    pub steps: Vec<Step>,
}

/// One change of the kernel. The variants stand in the order of their phases, which is a law: guards before links,
/// links before peers, peers before the routes to them, and removals in the opposite order, guards last. So no
/// prefix of a plan lets a pod's packet leave unencrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put the whole nftables table in place, in one transaction.
    SetFirewall {
        /// The table's text for `nft -f`, sets' elements left out.
        ruleset: String,
        /// The elements of its endpoint sets.
        endpoints: BTreeSet<SocketAddr>,
    },
    /// Put the table on the bridge's ports in place, with the pods that are attached, in one transaction.
    SetPortGuard,
    /// Change the elements of the endpoint sets.
    GuardEndpoints {
        /// Elements to add.
        add: BTreeSet<SocketAddr>,
        /// Elements to remove.
        remove: BTreeSet<SocketAddr>,
    },
    /// Add an unreachable route.
    AddUnreachable(IpNet),
    /// Put our accept rules at the head of a chain of the host's own firewall.
    AllowInHostChain {
        /// The chain.
        chain: HostChain,
        /// The WireGuard port to open, for an input chain.
        listen_port: u16,
    },
    /// Create a link, with its mark.
    CreateLink(Link),
    /// Write our ifalias on a link of our name.
    MarkLink(Link),
    /// Let bridged packets pass netfilter, on our bridge only.
    SetBridgeNetfilter,
    /// Set a link's MTU in bytes.
    SetMtu(Link, u32),
    /// Give a device its private key; the value says which by its public half. Its peers go: no session outlives its key.
    SetKey(Link, PublicKey),
    /// Set the port that a device listens on.
    SetListenPort(Link, u16),
    /// Add an address, without duplicate detection.
    AddAddress(Link, IpNet),
    /// Set a link up.
    SetUp(Link),
    /// Add or change a peer.
    SetPeer(PeerChange),
    /// Add or replace a route into the tunnel, by one of the devices.
    SetRoute(IpNet, DesiredRoute, Link),
    /// Remove a route into the tunnel.
    RemoveRoute(IpNet),
    /// Remove a peer.
    RemovePeer(Link, PublicKey),
    /// Remove an address.
    RemoveAddress(Link, IpNet),
    /// Delete a link.
    DeleteLink(Link),
    /// Take our rules out of a chain of the host's own firewall.
    LeaveHostChain(HostChain),
    /// Remove an unreachable route.
    RemoveUnreachable(IpNet),
    /// Remove the table on the bridge's ports.
    RemovePortGuard,
    /// Remove the nftables table.
    RemoveFirewall,
}

/// What changes of one peer. `None` leaves a value alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// The device.
    pub device: Link,
    /// The peer's key.
    pub public_key: PublicKey,
    /// The name of its Node.
    pub node: Arc<str>,
    /// Whether the peer is new.
    pub add: bool,
    /// Whether it is removed first: with it go its session and the timestamp of its last handshake.
    pub renew: bool,
    /// The endpoint to write.
    pub endpoint: Option<SocketAddr>,
    /// Allowed IPs to add; the kernel takes each from the peer that has it.
    pub add_allowed_ips: BTreeSet<IpNet>,
    /// The complete allowed IPs, where one must go that no other peer takes over.
    pub replace_allowed_ips: Option<BTreeSet<IpNet>>,
    /// Seconds between keepalives to write.
    pub keepalive: Option<u16>,
    /// Remove the preshared key that somebody set.
    pub clear_preshared_key: bool,
}

impl Step {
    /// The step's place in a plan: guards 0, links 1 to 4, peers 5 and 6, routes 7, removals 8 to 12, guards again
    /// 13 and 14. A peer's allowed IPs are replaced after every other peer took what moves to it: a prefix that moves
    /// always has an owner.
    pub fn phase(&self) -> u8 {
        match self {
            Self::SetFirewall { .. }
            | Self::SetPortGuard
            | Self::GuardEndpoints { .. }
            | Self::AddUnreachable(_) => 0,
            Self::AllowInHostChain { .. } | Self::CreateLink(_) | Self::MarkLink(_) => 1,
            Self::SetBridgeNetfilter | Self::SetMtu(..) | Self::SetKey(..) | Self::SetListenPort(..) => 2,
            Self::AddAddress(..) => 3,
            Self::SetUp(_) => 4,
            Self::SetPeer(PeerChange { replace_allowed_ips: None, .. }) => 5,
            Self::SetPeer(_) => 6,
            Self::SetRoute(..) => 7,
            Self::RemoveRoute(_) => 8,
            Self::RemovePeer(..) => 9,
            Self::RemoveAddress(..) => 10,
            Self::DeleteLink(_) => 11,
            Self::LeaveHostChain(_) => 12,
            Self::RemoveUnreachable(_) => 13,
            Self::RemovePortGuard | Self::RemoveFirewall => 14,
        }
    }
}
