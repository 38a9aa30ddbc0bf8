//! Which of several claims to one key, prefix or address is believed.
//!
//! What is programmed stays, prefix by prefix, and no new claim is programmed over it; where the kernel has forgotten, what
//! was written down counts; where nothing is known, the older Node keeps a prefix and a doubled key stays refused. So a
//! Node that claims what another holds moves nothing, in whatever order both arrive, and whatever else it holds itself.
//!
//! Claims that share no key and no address with each other don't matter to each other: a part of the claims may be
//! settled alone where nothing outside it touches it.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    IpNets, ObservedPeer, ObservedState, PublicKey, Reason, Resolved,
    claim::{Claim, Known},
    index::Index,
    next_socket, overlaps,
    reach::Reach,
};

/// What decides between claims.
pub(crate) struct Evidence<'a> {
    pub(crate) resolved: &'a Resolved,
    pub(crate) reach: Reach<'a>,
    pub(crate) observed: &'a ObservedState,
    pub(crate) index: &'a Index,
    pub(crate) nodes: &'a BTreeMap<Arc<str>, Known>,
    /// Which Node held a prefix at the last decision.
    pub(crate) holders: &'a BTreeMap<IpNet, Arc<str>>,
    /// Which Node held a key when that was last written down.
    pub(crate) key_holders: &'a BTreeMap<PublicKey, Arc<str>>,
}

/// A claim that is believed.
pub(crate) struct Believed<'a> {
    pub(crate) claim: &'a Claim,
    /// Whether another Node claims the same key.
    pub(crate) contested: bool,
}

/// Divides the claims into those to be believed and those to be refused. `own` is always believed.
pub(crate) fn settle<'a>(
    own: &'a Claim,
    claims: impl IntoIterator<Item = &'a Claim>,
    evidence: &Evidence<'_>,
) -> (Vec<Believed<'a>>, Vec<(&'a Claim, Reason)>) {
    let (mut settled, mut refused) = evidence.settle_keys(own, claims);
    settled.sort_by(|a, b| a.claim.age().cmp(&b.claim.age()));
    let mut held = Held::default();
    held.take(own, |_| true);
    settled.iter().for_each(|b| held.take(b.claim, |net| evidence.holds(b.claim, net)));
    settled.iter().for_each(|b| held.take(b.claim, |net| evidence.is_in_kernel(b.claim, net)));
    settled.retain(|believed| match held.conflict(believed.claim, evidence.index) {
        Some(reason) => {
            refused.push((believed.claim, reason));
            false
        }
        None => {
            held.take(believed.claim, |_| true);
            true
        }
    });
    (settled, refused)
}

impl<'e> Evidence<'e> {
    /// Leaves of the claims to one key that of the Node which is programmed with it, if there is just one. A next key is
    /// public before it is used: who copies it once the second device holds it comes too late.
    fn settle_keys<'a>(
        &self,
        own: &Claim,
        claims: impl IntoIterator<Item = &'a Claim>,
    ) -> (Vec<Believed<'a>>, Vec<(&'a Claim, Reason)>) {
        let mut claims: Vec<_> = claims.into_iter().collect();
        claims.sort_by_key(|claim| claim.key);
        let (mut settled, mut refused) = (Vec::with_capacity(claims.len()), Vec::new());
        for claims in claims.chunk_by(|a, b| a.key == b.key) {
            let contested = claims.len() > 1;
            let holder = if contested { self.key_holder(claims).map(|holder| &holder.node) } else { None };
            let next_holder = claims.first().and_then(|claim| self.next_key_holder(claim.key));
            let holder = next_holder.map(|holder| &holder.node).or(holder);
            for claim in claims {
                if claim.key == own.key {
                    refused.push((*claim, Reason::OwnKey));
                } else if holder.map_or(!contested, |holder| *holder == claim.node) {
                    settled.push(Believed { claim, contested });
                } else {
                    let holder = holder.map(ToString::to_string);
                    refused.push((*claim, Reason::DuplicateKey { holder }));
                }
            }
        }
        (settled, refused)
    }

    /// Of several claims to one key and prefix the one that asks for just what the kernel holds, else the oldest; where the
    /// kernel holds none, the one that had the key.
    fn key_holder<'a>(&self, claims: &[&'a Claim]) -> Option<&'a Claim> {
        let programmed = claims.iter().filter(|c| c.prefixes().any(|net| self.is_in_kernel(c, &net)));
        let likeness = |c| Some(self.likeness(c, self.observed.peers.get(&c.key)?, |socket| socket));
        let had = |c: &&&Claim| self.key_holders.get(&c.key) == Some(&c.node);
        programmed
            .min_by_key(|c| (Reverse(likeness(c)), c.age()))
            .or_else(|| claims.iter().find(had))
            .copied()
    }

    /// Whether this Node has its next key: what the second device holds stays, then a Node that has the key already comes
    /// before one that has it next, and the older before the younger.
    pub(crate) fn has_next_key(&self, key: PublicKey, claim: &Claim) -> bool {
        let oldest = || self.with_key(key).min_by_key(|claim| (claim.key != key, claim.age()));
        self.next_key_holder(key).or_else(oldest).is_none_or(|first| first.node == claim.node)
    }

    /// The claim that the second device holds a key for. Whoever copies the key has nothing at the first device.
    fn next_key_holder(&self, key: PublicKey) -> Option<&'e Claim> {
        let peer = self.observed.next.as_ref()?.peers.get(&key)?;
        let has = |claim: &Claim, net: &IpNet| match self.holders.get(net) {
            Some(holder) => *holder == claim.node,
            None => claim.prefixes().any(|own| overlaps(&own, net)),
        };
        let copies = |claim: &Claim| !claim.prefixes().any(|net| self.is_in_kernel(claim, &net));
        let claims = self.with_key(key).filter(|claim| peer.allowed_ips.iter().any(|net| has(claim, net)));
        claims.min_by_key(|c| (copies(c), Reverse(self.likeness(c, peer, next_socket)), c.age()))
    }

    fn with_key(&self, key: PublicKey) -> impl Iterator<Item = &'e Claim> {
        self.index.with_key(key).filter_map(|node| self.nodes.get(node)?.claim.as_ref().ok())
    }

    /// Whether the claim's prefixes are those of a peer, and whether its endpoint is.
    fn likeness(
        &self,
        claim: &Claim,
        peer: &ObservedPeer,
        socket: fn(SocketAddr) -> SocketAddr,
    ) -> (bool, bool) {
        let endpoint = self.reach.endpoint(claim, self.resolved).ok().flatten();
        let prefixes: IpNets = claim.prefixes().collect();
        (peer.allowed_ips == prefixes, peer.endpoint == endpoint.map(|(e, _)| socket(e)))
    }

    fn holds(&self, claim: &Claim, net: &IpNet) -> bool {
        self.holders.get(net).is_some_and(|holder| **holder == *claim.node)
    }

    /// Whether the kernel has a prefix at the claim's key; it can't have another's, so a copied key is no evidence.
    fn is_in_kernel(&self, claim: &Claim, net: &IpNet) -> bool {
        let peer = self.observed.peers.get(&claim.key);
        peer.is_some_and(|p| p.allowed_ips.contains(net))
            && self.holders.get(net).is_none_or(|holder| **holder == *claim.node)
    }
}

/// Prefixes that are taken, none overlapping another, by their first address.
#[derive(Default)]
struct Held<'a>(BTreeMap<IpAddr, (IpNet, &'a str)>);

impl<'a> Held<'a> {
    /// Takes those prefixes of a claim that nobody has.
    fn take(&mut self, claim: &'a Claim, which: impl Fn(&IpNet) -> bool) {
        for net in claim.prefixes().filter(which) {
            if self.overlapping(&net).next().is_none() {
                self.0.insert(net.network(), (net, &claim.node));
            }
        }
    }

    fn conflict(&self, claim: &Claim, index: &Index) -> Option<Reason> {
        claim.kinds().find_map(|(net, is_pod_cidr)| {
            let (mut own, mut others) = (false, None);
            for (held, node) in self.overlapping(&net) {
                if **node == *claim.node { own |= *held == net } else { others = Some((*node).to_owned()) }
            }
            let resident = if own { None } else { index.older_resident(&net, claim) };
            match (others, resident) {
                (Some(node), _) if is_pod_cidr => Some(Reason::DuplicatePodCidr(net, node)),
                (Some(node), _) => Some(Reason::DuplicateOverlayIp(net.addr(), node)),
                (None, Some((ip, node))) if is_pod_cidr => {
                    Some(Reason::PodCidrOverlaps(net, format!("the address {ip} of Node {node}")))
                }
                (None, Some((ip, node))) => Some(Reason::DuplicateOverlayIp(ip, node.to_owned())),
                (None, None) => None,
            }
        })
    }

    /// The held prefixes that overlap this one: as none overlaps another, of those before it only the nearest can.
    fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = &(IpNet, &'a str)> {
        let before = self.0.range(..net.network()).next_back();
        let within = self.0.range(net.network()..=net.broadcast());
        before.into_iter().chain(within).map(|(_, held)| held).filter(move |(held, _)| overlaps(held, net))
    }
}
