//! Who claims which key, prefix, address and endpoint: what a change of one Node can be felt by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    PublicKey,
    claim::{Claim, Known},
    mesh::rebuild,
};

/// Everything that is claimed, believed or not.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeSet<(PublicKey, Arc<str>)>,
    /// By first address and length.
    prefixes: BTreeSet<(IpAddr, u8, Arc<str>)>,
    /// How many prefixes there are of each length, by family.
    lengths: BTreeMap<(bool, u8), usize>,
    /// The addresses that Nodes live at, with the Node's age.
    residents: BTreeSet<(IpAddr, i64, Arc<str>)>,
    /// How many Nodes may be reached at each socket.
    endpoints: BTreeMap<SocketAddr, usize>,
    /// How many Nodes are reached by each name.
    names: BTreeMap<String, usize>,
}

impl Index {
    /// Takes in a Node that may be reached at these sockets, and the second key that it uses.
    pub(crate) fn insert(
        &mut self,
        node: &Arc<str>,
        known: &Known,
        next_key: Option<PublicKey>,
        sockets: &BTreeSet<SocketAddr>,
    ) {
        self.add_residents(node, known.created, &known.addresses);
        let Ok(claim) = &known.claim else { return };
        self.keys.extend(claim.keys(next_key).map(|key| (key, node.clone())));
        for net in claim.prefixes() {
            if self.prefixes.insert((net.network(), net.prefix_len(), node.clone())) {
                count(&mut self.lengths, length(&net));
            }
        }
        sockets.iter().for_each(|socket| count(&mut self.endpoints, *socket));
        claim.name().into_iter().for_each(|name| count(&mut self.names, name.to_owned()));
    }

    /// Takes out what was taken in.
    pub(crate) fn remove(
        &mut self,
        node: &Arc<str>,
        known: &Known,
        next_key: Option<PublicKey>,
        sockets: &BTreeSet<SocketAddr>,
    ) {
        for ip in &known.addresses {
            self.residents.remove(&(*ip, known.created, node.clone()));
        }
        let Ok(claim) = &known.claim else { return };
        for key in claim.keys(next_key) {
            self.keys.remove(&(key, node.clone()));
        }
        for net in claim.prefixes() {
            if self.prefixes.remove(&(net.network(), net.prefix_len(), node.clone())) {
                discount(&mut self.lengths, &length(&net));
            }
        }
        sockets.iter().for_each(|socket| discount(&mut self.endpoints, socket));
        claim.name().into_iter().for_each(|name| discount(&mut self.names, name));
    }

    /// Takes in addresses that a Node of this age lives at.
    pub(crate) fn add_residents(&mut self, node: &Arc<str>, created: i64, addresses: &[IpAddr]) {
        self.residents.extend(addresses.iter().map(|ip| (*ip, created, node.clone())));
    }

    /// The Nodes that claim a key.
    pub(crate) fn with_key(&self, key: PublicKey) -> impl Iterator<Item = &Arc<str>> {
        let from = self.keys.range((key, Arc::default())..);
        from.take_while(move |(other, _)| *other == key).map(|(_, node)| node)
    }

    /// The Nodes that claim a prefix which shares an address with this one.
    pub(crate) fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = &Arc<str>> {
        let (first, last) = (net.network(), net.broadcast());
        let within = self.prefixes.range((first, 0, Arc::default())..=(last, u8::MAX, Arc::default()));
        let family = first.is_ipv6();
        let shorter =
            self.lengths.range((family, 0)..(family, net.prefix_len())).map(|((_, length), _)| *length);
        let around = shorter.filter_map(move |length| {
            let network = IpNet::new(first, length).ok()?.network();
            // one with the same first address is among those within
            (network != first).then(|| {
                self.prefixes.range((network, length, Arc::default())..(network, length + 1, Arc::default()))
            })
        });
        within.chain(around.flatten()).map(|(_, _, node)| node)
    }

    /// The address within a prefix that another Node has been living at for longer, and that Node. A Node may name any
    /// number of addresses: one of a family counts, so that it keeps no more prefixes from others than it could by
    /// claiming them.
    pub(crate) fn older_resident(&self, net: &IpNet, claim: &Claim) -> Option<(IpAddr, &str)> {
        let last = net.broadcast();
        let from = self.residents.range((net.network(), i64::MIN, Arc::default())..);
        let mut within = from.take_while(|(ip, ..)| *ip <= last);
        let older =
            within.find(|(_, created, node)| *node != claim.node && (*created, node.as_ref()) < claim.age());
        older.map(|(ip, _, node)| (*ip, node.as_ref()))
    }

    /// To be called when many Nodes have been inserted.
    pub(crate) fn rebuild(&mut self) {
        rebuild(&mut self.keys);
        rebuild(&mut self.prefixes);
        rebuild(&mut self.residents);
        rebuild(&mut self.endpoints);
    }

    /// The sockets at which Nodes may be reached.
    pub(crate) fn endpoints(&self) -> BTreeSet<SocketAddr> {
        self.endpoints.keys().copied().collect()
    }

    /// Whether a Node may be reached at this socket.
    pub(crate) fn has_endpoint(&self, socket: &SocketAddr) -> bool {
        self.endpoints.contains_key(socket)
    }

    /// The names by which Nodes are reached.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> + Clone {
        self.names.keys()
    }
}

fn length(net: &IpNet) -> (bool, u8) {
    (net.network().is_ipv6(), net.prefix_len())
}

fn count<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    *counts.entry(key).or_default() += 1;
}

fn discount<K, Q>(counts: &mut BTreeMap<K, usize>, key: &Q)
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    if let Some(left) = counts.get_mut(key) {
        *left -= 1;
        if *left == 0 {
            counts.remove(key);
        }
    }
}
