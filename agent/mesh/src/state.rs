//! What the kernel of this node should hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{BRIDGE, DEVICE, EndpointSource, IpNets, NEXT_DEVICE, Pair, PublicKey};

/// Everything that is ours on this node, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredState {
    /// The WireGuard device.
    pub device: DesiredDevice,
    /// The second device, while a key rotates, here or at a peer.
    pub next: Option<DesiredNext>,
    /// The bridge of the pods.
    pub bridge: DesiredBridge,
    /// Prefixes that lead nowhere unless a route of ours is more specific.
    pub unreachable: BTreeSet<IpNet>,
    /// The other nodes, by key.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
    /// Routes into the tunnel, by destination: one for each allowed IP of the peers.
    pub routes: BTreeMap<IpNet, DesiredRoute>,
    /// The nftables table.
    pub firewall: Firewall,
}

/// The WireGuard device as it should be. Its private key is the shell's affair: a plan compares public keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredDevice {
    /// The public half of the device's key.
    pub public_key: PublicKey,
    /// The UDP port it listens on.
    pub listen_port: u16,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses: one of a family, as /32 or /128, and the overlay addresses outside the PodCIDRs.
    pub addresses: BTreeSet<IpNet>,
}

/// The second WireGuard device as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredNext {
    /// The device itself.
    pub device: DesiredDevice,
    /// Its peers, by their next key.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
    /// What they are besides, by the same key.
    pub pairs: BTreeMap<PublicKey, Pair>,
}

/// The bridge as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredBridge {
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The pods' gateways, with the PodCIDR's prefix length.
    pub addresses: BTreeSet<IpNet>,
}

/// Another node, as a WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredPeer {
    /// The name of its Node.
    pub node: Arc<str>,
    /// Where it is reached, and who said so; `None` while a name has no answer.
    pub endpoint: Option<(SocketAddr, EndpointSource)>,
    /// Its PodCIDRs, and overlay addresses outside them.
    pub allowed_ips: IpNets,
    /// Seconds between keepalives; 0 is none.
    pub keepalive: u16,
}

/// A route into the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DesiredRoute {
    /// The source a connection from this node itself takes.
    pub source: Option<IpAddr>,
    /// The path's MTU in bytes where it is smaller than the device's.
    pub mtu: Option<u32>,
}

/// What the nftables table must enforce; [`crate::ruleset`] writes it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// The pod prefixes of the whole cluster and the overlay prefixes: what must only travel in the tunnel.
    pub cluster: BTreeSet<IpNet>,
    /// This node's overlay addresses, one of a family: the source for what leaves by the tunnel from elsewhere.
    pub overlay_ips: BTreeSet<IpAddr>,
    /// Destinations (and, for new inbound flows, sources) outside the cluster that see pod addresses.
    pub non_masquerade: BTreeSet<IpNet>,
    /// Whether pod traffic to the outside takes the node's address.
    pub masquerade: bool,
    /// Whether pod packets outside the tunnel are dropped.
    pub fail_closed: bool,
    /// This node's WireGuard port.
    pub listen_port: u16,
    /// Addresses that this node is known to live at, one of a family: what comes there to WireGuard's ports is its own.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The WireGuard endpoints of the other nodes, which pods may not send to.
    pub endpoints: BTreeSet<SocketAddr>,
}

/// The links that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// The WireGuard device.
    Device,
    /// The second WireGuard device.
    Next,
    /// The bridge.
    Bridge,
}

impl Link {
    /// The interface's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => DEVICE,
            Self::Next => NEXT_DEVICE,
            Self::Bridge => BRIDGE,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
