//! The state that was read last, kept true through our own changes, so that a change needs no new reading.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use ipnet::IpNet;
use wg_overlay_mesh::{
    HostChainState, Link, ObservedFirewall, ObservedPeer, ObservedRoute, ObservedState, PeerChange,
    PublicKey, Step,
};

/// What was observed, and what only this process knows of it.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) state: ObservedState,
    /// Indexes of our links.
    pub(crate) device_index: Option<u32>,
    pub(crate) bridge_index: Option<u32>,
    /// Whose each allowed IP is: the kernel takes it from there when another peer gets it.
    owners: HashMap<IpNet, PublicKey>,
    /// The endpoint written last to each peer.
    written: HashMap<PublicKey, SocketAddr>,
}

impl Cache {
    /// The index of a link of ours.
    pub(crate) fn index(&self, link: Link) -> Option<u32> {
        match link {
            Link::Device => self.device_index,
            Link::Bridge => self.bridge_index,
        }
    }

    /// Takes the peers of a dump.
    pub(crate) fn set_peers(&mut self, mut peers: BTreeMap<PublicKey, ObservedPeer>) {
        self.written.retain(|key, _| peers.contains_key(key));
        for (key, peer) in &mut peers {
            peer.written_endpoint = self.written.get(key).copied();
        }
        self.owners =
            peers.iter().flat_map(|(key, p)| p.allowed_ips.iter().map(|net| (*net, *key))).collect();
        self.state.peers = peers;
    }

    /// Forgets what went with the device.
    pub(crate) fn forget_device(&mut self) {
        self.state.device = None;
        self.device_index = None;
        self.state.peers.clear();
        self.state.routes.retain(|_, route| !route.through_device);
        self.owners.clear();
        self.written.clear();
    }

    /// What the kernel holds after a step that succeeded. A created link is read instead.
    pub(crate) fn record(&mut self, step: &Step) {
        let state = &mut self.state;
        match step {
            Step::SetFirewall { ruleset, endpoints } => {
                state.firewall =
                    Some(ObservedFirewall { ruleset: ruleset.clone(), endpoints: endpoints.clone() });
            }
            Step::GuardEndpoints { add, remove } => {
                if let Some(firewall) = &mut state.firewall {
                    firewall.endpoints.retain(|endpoint| !remove.contains(endpoint));
                    firewall.endpoints.extend(add);
                }
            }
            Step::AddUnreachable(net) => {
                state.unreachable.insert(*net);
            }
            Step::AllowInHostChain { chain, .. } => {
                state.host_chains.insert(chain.clone(), HostChainState::Allowed);
            }
            Step::CreateLink(_) => {}
            Step::MarkLink(link) => self.change(*link, |found| *found.marked = true),
            Step::SetBridgeNetfilter => {
                if let Some(netfilter) = state.bridge.as_mut().and_then(|bridge| bridge.netfilter.as_mut()) {
                    *netfilter = true;
                }
            }
            Step::SetMtu(link, mtu) => self.change(*link, |found| *found.mtu = *mtu),
            Step::SetKey(key) => {
                state.device.iter_mut().for_each(|device| device.public_key = Some(*key));
            }
            Step::SetListenPort(port) => {
                state.device.iter_mut().for_each(|device| device.listen_port = *port);
            }
            Step::AddAddress(link, net) => self.change(*link, |found| {
                found.addresses.insert(*net);
            }),
            Step::SetUp(link) => self.change(*link, |found| *found.up = true),
            Step::SetPeer(change) => self.record_peer(change),
            Step::SetRoute(net, route) => {
                let found = ObservedRoute { through_device: true, source: route.source, mtu: route.mtu };
                state.routes.insert(*net, found);
            }
            Step::RemoveRoute(net) => {
                state.routes.remove(net);
            }
            Step::RemovePeer(key) => {
                self.written.remove(key);
                if let Some(peer) = state.peers.remove(key) {
                    self.owners.retain(|net, owner| owner != key || !peer.allowed_ips.contains(net));
                }
            }
            Step::RemoveAddress(link, net) => self.change(*link, |found| {
                found.addresses.remove(net);
            }),
            Step::DeleteLink(Link::Device) => self.forget_device(),
            Step::DeleteLink(Link::Bridge) => {
                state.bridge = None;
                self.bridge_index = None;
            }
            Step::LeaveHostChain(chain) => {
                state.host_chains.remove(chain);
            }
            Step::RemoveUnreachable(net) => {
                state.unreachable.remove(net);
            }
            Step::RemoveFirewall => state.firewall = None,
        }
    }

    fn record_peer(&mut self, change: &PeerChange) {
        let key = change.public_key;
        let nets = change.replace_allowed_ips.as_ref().unwrap_or(&change.add_allowed_ips);
        for net in nets {
            let before = self.owners.insert(*net, key).filter(|owner| *owner != key);
            if let Some(peer) = before.and_then(|owner| self.state.peers.get_mut(&owner)) {
                peer.allowed_ips.remove(net);
            }
        }
        let peer = self.state.peers.entry(key).or_default();
        match &change.replace_allowed_ips {
            Some(all) => {
                for gone in peer.allowed_ips.difference(all) {
                    self.owners.remove(gone);
                }
                peer.allowed_ips.clone_from(all);
            }
            None => peer.allowed_ips.extend(&change.add_allowed_ips),
        }
        if let Some(endpoint) = change.endpoint {
            self.written.insert(key, endpoint);
            peer.endpoint = Some(endpoint);
            peer.written_endpoint = Some(endpoint);
        }
        peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
        peer.preshared_key &= !change.clear_preshared_key;
    }

    fn change(&mut self, link: Link, with: impl FnOnce(FoundLink<'_>)) {
        let found = match link {
            Link::Device => self.state.device.as_mut().map(|d| FoundLink {
                marked: &mut d.marked,
                up: &mut d.up,
                mtu: &mut d.mtu,
                addresses: &mut d.addresses,
            }),
            Link::Bridge => self.state.bridge.as_mut().map(|b| FoundLink {
                marked: &mut b.marked,
                up: &mut b.up,
                mtu: &mut b.mtu,
                addresses: &mut b.addresses,
            }),
        };
        if let Some(found) = found {
            with(found);
        }
    }
}

/// What our two links have in common.
struct FoundLink<'a> {
    marked: &'a mut bool,
    up: &'a mut bool,
    mtu: &'a mut u32,
    addresses: &'a mut BTreeSet<IpNet>,
}
