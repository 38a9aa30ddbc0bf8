//! The state that was read last, kept true through our own changes, so that a change needs no new reading.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::from_fn,
};

use ipnet::IpNet;
use wg_overlay_mesh::{
    DesiredState, HostChainState, Link, ObservedDevice, ObservedFirewall, ObservedNext, ObservedPeer,
    ObservedRoute, ObservedState, PORT_RULESET, PeerChange, PublicKey, Step,
};

use crate::wireguard::Settings;

/// What was observed, and what only this process knows of it.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) state: ObservedState,
    /// Indexes of our links.
    pub(crate) indexes: BTreeMap<Link, u32>,
    /// Whose each allowed IP of a device is: the kernel takes it from there when another peer gets it.
    owners: BTreeMap<Link, BTreeMap<IpNet, PublicKey>>,
    /// Both devices' peers that changed in anything but traffic and handshakes since somebody asked.
    pub(crate) changed: BTreeSet<PublicKey>,
}

impl Cache {
    /// The device of this link.
    pub(crate) fn device(&self, link: Link) -> Option<&ObservedDevice> {
        match link {
            Link::Device => self.state.device.as_ref(),
            Link::Next => self.state.next.as_ref().map(|next| &next.device),
            Link::Bridge => None,
        }
    }

    fn device_mut(&mut self, link: Link) -> Option<&mut ObservedDevice> {
        match link {
            Link::Device => self.state.device.as_mut(),
            Link::Next => self.state.next.as_mut().map(|next| &mut next.device),
            Link::Bridge => None,
        }
    }

    fn peers_mut(&mut self, link: Link) -> Option<&mut BTreeMap<PublicKey, ObservedPeer>> {
        match link {
            Link::Device => Some(&mut self.state.peers),
            Link::Next => self.state.next.as_mut().map(|next| &mut next.peers),
            Link::Bridge => None,
        }
    }

    /// Takes a device's link as it was found, and tells whether it is another than before, whose settings nobody has read.
    pub(crate) fn set_device(&mut self, link: Link, found: Option<(u32, ObservedDevice)>) -> bool {
        let Some((index, mut device)) = found else {
            self.forget_device(link);
            return false;
        };
        let is_new = self.indexes.get(&link) != Some(&index);
        if is_new {
            self.forget_device(link);
            self.indexes.insert(link, index);
        }
        if let Some(before) = self.device(link) {
            device.public_key = before.public_key;
            device.listen_port = before.listen_port;
        }
        if link == Link::Next {
            let peers = self.state.next.take().map(|next| next.peers).unwrap_or_default();
            self.state.next = Some(ObservedNext { device, peers });
        } else {
            self.state.device = Some(device);
        }
        is_new
    }

    /// Takes the settings of a device as they were read.
    pub(crate) fn set_settings(&mut self, link: Link, settings: Settings) {
        if let Some(device) = self.device_mut(link) {
            device.public_key = settings.public_key;
            device.listen_port = settings.listen_port;
        }
        self.set_peers(link, settings.peers);
    }

    /// Takes the peers of a dump. Those before are given back as the new ones are taken: thousands are megabytes.
    fn set_peers(&mut self, link: Link, mut peers: Vec<(PublicKey, ObservedPeer)>) {
        let Some(held) = self.peers_mut(link) else { return };
        peers.sort_unstable_by_key(|(key, _)| *key);
        let mut before = std::mem::take(held).into_iter().peekable();
        let mut changed = Vec::new();
        for (key, peer) in &mut peers {
            changed.extend(from_fn(|| before.next_if(|(gone, _)| gone < key)).map(|(gone, _)| gone));
            let found = before.next_if(|(other, _)| other == key).map(|(_, found)| found);
            peer.written_endpoint = found.as_ref().and_then(|found| found.written_endpoint);
            changed.extend((!found.is_some_and(|found| same(&found, peer))).then_some(*key));
        }
        changed.extend(before.map(|(gone, _)| gone));
        *held = peers.into_iter().collect();
        if !changed.is_empty() {
            let peers = held.iter();
            let owners =
                peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|net| (*net, *key))).collect();
            self.owners.insert(link, owners);
        }
        self.changed.extend(changed);
    }

    /// Forgets what went with a device.
    fn forget_device(&mut self, link: Link) {
        self.set_peers(link, Vec::new());
        match link {
            Link::Device => self.state.device = None,
            _ => self.state.next = None,
        }
        self.indexes.remove(&link);
        self.state.routes.retain(|_, route| route.through != Some(link));
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
                    for endpoint in remove {
                        firewall.endpoints.remove(endpoint);
                    }
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
            Step::SetKey(link, key) => {
                self.device_mut(*link).into_iter().for_each(|device| device.public_key = Some(*key));
                self.set_peers(*link, Vec::new());
            }
            Step::SetListenPort(link, port) => {
                self.device_mut(*link).into_iter().for_each(|device| device.listen_port = *port);
            }
            Step::AddAddress(link, net) => self.change(*link, |found| {
                found.addresses.insert(*net);
            }),
            Step::SetUp(link) => self.change(*link, |found| *found.up = true),
            Step::SetPeer(change) => self.record_peer(change),
            Step::SetRoute(net, route, link) => {
                let found = ObservedRoute { through: Some(*link), source: route.source, mtu: route.mtu };
                state.routes.insert(*net, found);
            }
            Step::RemoveRoute(net) => {
                state.routes.remove(net);
            }
            Step::RemovePeer(link, key) => {
                self.changed.insert(*key);
                let peer = self.peers_mut(*link).and_then(|peers| peers.remove(key));
                let owners = self.owners.entry(*link).or_default();
                for net in peer.unwrap_or_default().allowed_ips.iter() {
                    if owners.get(net) == Some(key) {
                        owners.remove(net);
                    }
                }
            }
            Step::RemoveAddress(link, net) => self.change(*link, |found| {
                found.addresses.remove(net);
            }),
            Step::DeleteLink(Link::Bridge) => {
                state.bridge = None;
                self.indexes.remove(&Link::Bridge);
            }
            Step::DeleteLink(link) => self.forget_device(*link),
            Step::LeaveHostChain(chain) => {
                state.host_chains.remove(chain);
            }
            Step::RemoveUnreachable(net) => {
                state.unreachable.remove(net);
            }
            Step::SetPortGuard => state.port_guard = Some(PORT_RULESET.to_owned()),
            Step::RemovePortGuard => state.port_guard = None,
            Step::RemoveFirewall => state.firewall = None,
        }
    }

    fn record_peer(&mut self, change: &PeerChange) {
        let (link, key) = (change.device, change.public_key);
        if change.renew {
            self.record(&Step::RemovePeer(link, key));
        }
        let mut owners = self.owners.remove(&link).unwrap_or_default();
        let nets = change.replace_allowed_ips.as_ref().unwrap_or(&change.add_allowed_ips);
        let mut changed = BTreeSet::from([key]);
        if let Some(peers) = self.peers_mut(link) {
            for net in nets {
                let before = owners.insert(*net, key).filter(|owner| *owner != key);
                if let Some(peer) = before.and_then(|owner| peers.get_mut(&owner)) {
                    peer.allowed_ips.remove(net);
                }
                changed.extend(before);
            }
            let peer = peers.entry(key).or_default();
            match &change.replace_allowed_ips {
                Some(all) => {
                    for gone in peer.allowed_ips.iter().filter(|net| !all.contains(net)) {
                        owners.remove(gone);
                    }
                    peer.allowed_ips = all.iter().copied().collect();
                }
                None => peer.allowed_ips.extend(change.add_allowed_ips.iter().copied()),
            }
            if let Some(endpoint) = change.endpoint {
                peer.endpoint = Some(endpoint);
                peer.written_endpoint = Some(endpoint);
            }
            peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
            peer.preshared_key &= !change.clear_preshared_key;
        }
        self.owners.insert(link, owners);
        self.changed.extend(changed);
    }

    /// Takes what is advertised of peers that were found for written: what is advertised after it is news.
    pub(crate) fn adopt_endpoints(&mut self, desired: &DesiredState) {
        let next = self.state.next.iter_mut().zip(&desired.next);
        let next = next.map(|(found, wanted)| (&mut found.peers, &wanted.peers));
        for (found, wanted) in std::iter::once((&mut self.state.peers, &desired.peers)).chain(next) {
            for (key, peer) in found.iter_mut().filter(|(_, peer)| peer.written_endpoint.is_none()) {
                let wanted = wanted.get(key).and_then(|wanted| wanted.endpoint);
                peer.written_endpoint = wanted.map(|(endpoint, _)| endpoint);
            }
        }
    }

    fn change(&mut self, link: Link, with: impl FnOnce(FoundLink<'_>)) {
        let found = match link {
            Link::Device | Link::Next => self.device_mut(link).map(|d| FoundLink {
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

/// Whether two readings of a peer differ in nothing but traffic and handshakes.
fn same(a: &ObservedPeer, b: &ObservedPeer) -> bool {
    a.endpoint == b.endpoint
        && a.written_endpoint == b.written_endpoint
        && a.allowed_ips == b.allowed_ips
        && a.keepalive == b.keepalive
        && a.preshared_key == b.preshared_key
}

/// What our links have in common.
struct FoundLink<'a> {
    marked: &'a mut bool,
    up: &'a mut bool,
    mtu: &'a mut u32,
    addresses: &'a mut BTreeSet<IpNet>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32]).unwrap()
    }

    fn takes(n: u8, net: &str) -> Step {
        Step::SetPeer(PeerChange {
            device: Link::Device,
            public_key: key(n),
            node: "".into(),
            add: true,
            renew: false,
            endpoint: None,
            add_allowed_ips: BTreeSet::from([net.parse().unwrap()]),
            replace_allowed_ips: None,
            keepalive: None,
            clear_preshared_key: false,
        })
    }

    fn changed(cache: &mut Cache) -> Vec<PublicKey> {
        std::mem::take(&mut cache.changed).into_iter().collect()
    }

    #[test]
    fn a_peer_that_changes_by_whomever_is_told_and_its_traffic_is_not() {
        let mut cache = Cache::default();
        cache.record(&takes(1, "10.244.1.0/24"));
        cache.record(&takes(2, "10.244.2.0/24"));
        assert_eq!(changed(&mut cache), [key(1), key(2)]);
        cache.record(&takes(3, "10.244.1.0/24"));
        assert_eq!(changed(&mut cache), [key(1), key(3)], "the one that lost its prefix too");
        cache.record(&Step::RemovePeer(Link::Device, key(3)));
        assert_eq!(changed(&mut cache), [key(3)]);

        let mut read = cache.state.peers.clone();
        read.values_mut().for_each(|peer| peer.received += 7);
        cache.set_peers(Link::Device, read.clone().into_iter().collect());
        assert_eq!(changed(&mut cache), []);
        read.entry(key(2)).and_modify(|peer| peer.endpoint = Some("192.0.2.9:7".parse().unwrap()));
        read.remove(&key(1));
        cache.set_peers(Link::Device, read.into_iter().collect());
        assert_eq!(changed(&mut cache), [key(1), key(2)]);
        cache.forget_device(Link::Device);
        assert_eq!(changed(&mut cache), [key(2)]);
    }
}
