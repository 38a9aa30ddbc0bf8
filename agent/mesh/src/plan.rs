//! The difference between desired and observed, as an ordered list of steps.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{
    DesiredPeer, DesiredRoute, DesiredState, HostChain, HostChainState, Link, ObservedPeer, ObservedState,
    PublicKey, ruleset,
};

/// A handshake older than this is stale: WireGuard makes a new one every 120 s while packets flow and gives the old
/// session up after 180 s (REJECT_AFTER_TIME, WireGuard paper, section 6.1).
pub(crate) const FRESH_HANDSHAKE: Duration = Duration::from_secs(180);

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
    /// Give the device its private key; the value says which by its public half.
    SetKey(PublicKey),
    /// Set the port the device listens on.
    SetListenPort(u16),
    /// Add an address, without duplicate detection.
    AddAddress(Link, IpNet),
    /// Set a link up.
    SetUp(Link),
    /// Add or change a peer.
    SetPeer(PeerChange),
    /// Add or replace a route into the tunnel.
    SetRoute(IpNet, DesiredRoute),
    /// Remove a route into the tunnel.
    RemoveRoute(IpNet),
    /// Remove a peer.
    RemovePeer(PublicKey),
    /// Remove an address.
    RemoveAddress(Link, IpNet),
    /// Delete a link.
    DeleteLink(Link),
    /// Take our rules out of a chain of the host's own firewall.
    LeaveHostChain(HostChain),
    /// Remove an unreachable route.
    RemoveUnreachable(IpNet),
    /// Remove the nftables table.
    RemoveFirewall,
}

/// What changes of one peer. `None` leaves a value alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// The peer's key.
    pub public_key: PublicKey,
    /// The name of its Node.
    pub node: String,
    /// Whether the peer is new.
    pub add: bool,
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

/// The steps from observed to desired. Empty where nothing differs.
pub fn plan(desired: &DesiredState, observed: &ObservedState) -> Plan {
    let mut steps = Vec::new();
    guards(desired, observed, &mut steps);
    links(desired, observed, &mut steps);
    peers(desired, observed, &mut steps);
    routes(desired, observed, &mut steps);
    leftovers(desired, observed, &mut steps);
    steps.sort_by_key(Step::phase); // stable: within a phase the maps' order stays
    Plan { steps }
}

/// The steps that remove everything of ours: the tunnel first, the guards last.
pub fn cleanup(observed: &ObservedState) -> Plan {
    let mut steps = Vec::new();
    steps.extend(observed.routes.keys().map(|p| Step::RemoveRoute(*p)));
    steps.extend(observed.device.iter().map(|_| Step::DeleteLink(Link::Device)));
    steps.extend(observed.bridge.iter().map(|_| Step::DeleteLink(Link::Bridge)));
    // a chain that drops may still hold rules of ours, made for an earlier port
    steps.extend(observed.host_chains.keys().map(|c| Step::LeaveHostChain(c.clone())));
    steps.extend(observed.unreachable.iter().map(|p| Step::RemoveUnreachable(*p)));
    steps.extend(observed.firewall.iter().map(|_| Step::RemoveFirewall));
    steps.sort_by_key(Step::phase);
    Plan { steps }
}

impl Step {
    /// The step's place in a plan: guards 0, links 1 to 4, peers 5 and 6, routes 7, removals 8 to 12, guards again
    /// 13 and 14. A peer's allowed IPs are replaced after every other peer took what moves to it: a prefix that moves
    /// always has an owner.
    pub fn phase(&self) -> u8 {
        match self {
            Self::SetFirewall { .. } | Self::GuardEndpoints { .. } | Self::AddUnreachable(_) => 0,
            Self::AllowInHostChain { .. } | Self::CreateLink(_) | Self::MarkLink(_) => 1,
            Self::SetBridgeNetfilter | Self::SetMtu(..) | Self::SetKey(_) | Self::SetListenPort(_) => 2,
            Self::AddAddress(..) => 3,
            Self::SetUp(_) => 4,
            Self::SetPeer(PeerChange { replace_allowed_ips: None, .. }) => 5,
            Self::SetPeer(_) => 6,
            Self::SetRoute(..) => 7,
            Self::RemoveRoute(_) => 8,
            Self::RemovePeer(_) => 9,
            Self::RemoveAddress(..) => 10,
            Self::DeleteLink(_) => 11,
            Self::LeaveHostChain(_) => 12,
            Self::RemoveUnreachable(_) => 13,
            Self::RemoveFirewall => 14,
        }
    }
}

fn guards(desired: &DesiredState, observed: &ObservedState, steps: &mut Vec<Step>) {
    let text = ruleset(&desired.firewall);
    let wanted = &desired.firewall.endpoints;
    match &observed.firewall {
        Some(found) if found.ruleset == text => {
            let add: BTreeSet<_> = wanted.difference(&found.endpoints).copied().collect();
            let remove: BTreeSet<_> = found.endpoints.difference(wanted).copied().collect();
            if !add.is_empty() || !remove.is_empty() {
                steps.push(Step::GuardEndpoints { add, remove });
            }
        }
        _ => steps.push(Step::SetFirewall { ruleset: text, endpoints: wanted.clone() }),
    }
    steps.extend(desired.unreachable.difference(&observed.unreachable).map(|p| Step::AddUnreachable(*p)));
    steps.extend(observed.unreachable.difference(&desired.unreachable).map(|p| Step::RemoveUnreachable(*p)));
    for (chain, state) in &observed.host_chains {
        match state {
            HostChainState::Drops => steps.push(Step::AllowInHostChain {
                chain: chain.clone(),
                listen_port: desired.device.listen_port,
            }),
            HostChainState::Unneeded => steps.push(Step::LeaveHostChain(chain.clone())),
            HostChainState::Allowed => {}
        }
    }
}

fn links(desired: &DesiredState, observed: &ObservedState, steps: &mut Vec<Step>) {
    let device = observed.device.as_ref();
    let bridge = observed.bridge.as_ref();
    let want = &desired.device;
    link(
        Link::Device,
        (want.mtu, &want.addresses),
        device.map(|d| (d.marked, d.up, d.mtu, &d.addresses)),
        steps,
    );
    let gateways = &desired.bridge.addresses | &observed.addresses_in_use;
    link(
        Link::Bridge,
        (desired.bridge.mtu, &gateways),
        bridge.map(|b| (b.marked, b.up, b.mtu, &b.addresses)),
        steps,
    );
    if device.and_then(|d| d.public_key) != Some(want.public_key) {
        steps.push(Step::SetKey(want.public_key));
    }
    if device.map(|d| d.listen_port) != Some(want.listen_port) {
        steps.push(Step::SetListenPort(want.listen_port));
    }
    if bridge.is_none_or(|b| b.netfilter == Some(false)) {
        steps.push(Step::SetBridgeNetfilter);
    }
}

type Wanted<'a> = (u32, &'a BTreeSet<IpNet>);
type Found<'a> = (bool, bool, u32, &'a BTreeSet<IpNet>);

fn link(which: Link, (mtu, wanted): Wanted<'_>, found: Option<Found<'_>>, steps: &mut Vec<Step>) {
    let none = BTreeSet::new();
    let (marked, up, found_mtu, addresses) = found.unwrap_or_else(|| {
        steps.push(Step::CreateLink(which));
        (true, false, 0, &none)
    });
    if !marked {
        steps.push(Step::MarkLink(which));
    }
    if found_mtu != mtu {
        steps.push(Step::SetMtu(which, mtu));
    }
    steps.extend(wanted.difference(addresses).map(|a| Step::AddAddress(which, *a)));
    steps.extend(addresses.difference(wanted).map(|a| Step::RemoveAddress(which, *a)));
    if !up {
        steps.push(Step::SetUp(which));
    }
}

fn peers(desired: &DesiredState, observed: &ObservedState, steps: &mut Vec<Step>) {
    let owned: BTreeSet<&IpNet> = desired.peers.values().flat_map(|p| &p.allowed_ips).collect();
    for (key, peer) in &desired.peers {
        match observed.peers.get(key) {
            None => steps.push(Step::SetPeer(new_peer(*key, peer))),
            Some(found) => {
                steps.extend(changed_peer(*key, peer, found).map(Step::SetPeer));
                let orphaned = found.allowed_ips.difference(&peer.allowed_ips).any(|ip| !owned.contains(ip));
                if orphaned {
                    let replace_allowed_ips = Some(peer.allowed_ips.clone());
                    steps.push(Step::SetPeer(PeerChange { replace_allowed_ips, ..untouched(*key, peer) }));
                }
            }
        }
    }
}

fn untouched(public_key: PublicKey, peer: &DesiredPeer) -> PeerChange {
    PeerChange {
        public_key,
        node: peer.node.clone(),
        add: false,
        endpoint: None,
        add_allowed_ips: BTreeSet::new(),
        replace_allowed_ips: None,
        keepalive: None,
        clear_preshared_key: false,
    }
}

fn new_peer(public_key: PublicKey, peer: &DesiredPeer) -> PeerChange {
    PeerChange {
        add: true,
        endpoint: peer.endpoint.map(|(e, _)| e),
        add_allowed_ips: peer.allowed_ips.clone(),
        keepalive: (peer.keepalive != 0).then_some(peer.keepalive),
        ..untouched(public_key, peer)
    }
}

fn changed_peer(public_key: PublicKey, peer: &DesiredPeer, found: &ObservedPeer) -> Option<PeerChange> {
    let nothing = untouched(public_key, peer);
    let change = PeerChange {
        endpoint: peer.endpoint.map(|(e, _)| e).filter(|e| endpoint_differs(*e, found)),
        add_allowed_ips: peer.allowed_ips.difference(&found.allowed_ips).copied().collect(),
        keepalive: (peer.keepalive != found.keepalive).then_some(peer.keepalive),
        clear_preshared_key: found.preshared_key,
        ..nothing.clone()
    };
    (change != nothing).then_some(change)
}

/// WireGuard roams: what a fresh handshake taught the kernel stays until the advertised endpoint itself changes.
fn endpoint_differs(advertised: SocketAddr, found: &ObservedPeer) -> bool {
    let fresh = found.handshake_age.is_some_and(|age| age < FRESH_HANDSHAKE);
    let readvertised = found.written_endpoint.is_some_and(|written| written != advertised);
    found.endpoint != Some(advertised) && (readvertised || !fresh)
}

fn routes(desired: &DesiredState, observed: &ObservedState, steps: &mut Vec<Step>) {
    for (prefix, route) in &desired.routes {
        let same = observed
            .routes
            .get(prefix)
            .is_some_and(|r| r.through_device && r.source == route.source && r.mtu == route.mtu);
        if !same {
            steps.push(Step::SetRoute(*prefix, *route));
        }
    }
}

fn leftovers(desired: &DesiredState, observed: &ObservedState, steps: &mut Vec<Step>) {
    let gone = observed.routes.keys().filter(|p| !desired.routes.contains_key(p));
    steps.extend(gone.map(|p| Step::RemoveRoute(*p)));
    let gone = observed.peers.keys().filter(|k| !desired.peers.contains_key(k));
    steps.extend(gone.map(|k| Step::RemovePeer(*k)));
}
