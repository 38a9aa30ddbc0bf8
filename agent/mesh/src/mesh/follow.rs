//! Deciding on a part: the Nodes that changed, and those that share a key or an address with them, or with one that does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Changes, Mesh, Part, Touched, next_key, sockets};
use crate::{
    Cluster, Decision, DesiredNext, ObservedState, PublicKey,
    basis::Basis,
    claim::{Claim, Known},
    prefix::host_prefix,
};

impl Mesh {
    pub(super) fn follow(
        &mut self,
        basis: &Basis,
        mut decision: Decision,
        cluster: &impl Cluster,
        observed: &ObservedState,
        changes: Changes,
    ) -> (Decision, Touched) {
        let mut part = Part { peers: changes.peers, ..Part::default() };
        let mut near = std::mem::take(&mut self.moved);
        for name in &changes.nodes {
            if let Some((node, before)) = self.read(basis, name, cluster.record(name).as_deref()) {
                withdraw(basis, &node, &before, &mut decision);
                part.note(&node, &before, next_key(basis, &before), sockets(basis, &before));
                near.extend(before.addresses.iter().map(|ip| host_prefix(*ip)));
            }
            if let Some((node, now)) = self.nodes.get_key_value(name.as_str()) {
                part.note(node, now, next_key(basis, now), sockets(basis, now));
                near.extend(now.addresses.iter().map(|ip| host_prefix(*ip)));
            }
        }
        let nodes = self.connected(basis, &part, &near);
        let known: Vec<_> = nodes.iter().filter_map(|node| self.nodes.get_key_value(node)).collect();
        for (node, known) in &known {
            withdraw(basis, node, known, &mut decision);
            part.note(node, known, next_key(basis, known), BTreeSet::new());
        }
        let holders = std::mem::take(&mut decision.holders);
        let held = self.add(basis, known, &holders, observed, &mut decision);
        decision.holders = holders;
        self.moved = hand_over(&mut decision.holders, &basis.own, &part.prefixes, held);
        for socket in &part.endpoints {
            match self.index.has_endpoint(socket) {
                true => decision.desired.firewall.endpoints.insert(*socket),
                false => decision.desired.firewall.endpoints.remove(socket),
            };
        }
        (decision, Touched::Only(part))
    }

    /// The Nodes of a part and at these prefixes, and whoever they are in conflict with.
    fn connected(&self, basis: &Basis, part: &Part, near: &BTreeSet<IpNet>) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        let mut queue: Vec<&Arc<str>> = part.nodes.iter().collect();
        queue.extend(part.peers.iter().flat_map(|key| self.index.with_key(*key)));
        queue.extend(part.prefixes.union(near).flat_map(|net| self.index.overlapping(net)));
        while let Some(node) = queue.pop() {
            if !found.insert(node.clone()) {
                continue;
            }
            if let Some(Ok(claim)) = self.nodes.get(node).map(|known| &known.claim) {
                let next_key = basis.rotation(claim).map(|(key, _)| key);
                queue.extend(claim.keys(next_key).flat_map(|key| self.index.with_key(key)));
                claim.prefixes().for_each(|net| queue.extend(self.index.overlapping(&net)));
            }
        }
        found
    }
}

impl Part {
    fn note(
        &mut self,
        node: &Arc<str>,
        known: &Known,
        next_key: Option<PublicKey>,
        sockets: BTreeSet<SocketAddr>,
    ) {
        self.nodes.insert(node.clone());
        self.endpoints.extend(sockets);
        if let Ok(claim) = &known.claim {
            self.peers.extend(claim.keys(next_key));
            self.prefixes.extend(claim.prefixes());
        }
    }
}

/// Takes out what a decision says of a Node, who holds what apart.
fn withdraw(basis: &Basis, node: &Arc<str>, known: &Known, decision: &mut Decision) {
    decision.refusals.remove(&**node);
    decision.unresolved.remove(&**node);
    let Ok(claim) = &known.claim else { return };
    let desired = &mut decision.desired;
    if desired.peers.get(&claim.key).is_some_and(|peer| *peer.node == **node) {
        desired.peers.remove(&claim.key);
        for net in claim.prefixes() {
            desired.routes.remove(&net);
        }
    }
    if let (Some(key), Some(next)) = (next_key(basis, known), &mut desired.next)
        && next.peers.get(&key).is_some_and(|peer| *peer.node == **node)
    {
        next.peers.remove(&key);
        next.pairs.remove(&key);
    }
    let in_use = |next: &DesiredNext| basis.rotates() || !next.peers.is_empty();
    desired.next = desired.next.take().filter(in_use);
}

/// Gives prefixes to those who hold them now; what nobody holds any more is free. Gives those that moved.
fn hand_over(
    holders: &mut BTreeMap<IpNet, Arc<str>>,
    own: &Claim,
    prefixes: &BTreeSet<IpNet>,
    held: Vec<(IpNet, Arc<str>)>,
) -> BTreeSet<IpNet> {
    let others = prefixes.iter().filter(|net| !own.prefixes().any(|own| own == **net));
    let before: Vec<_> = others.map(|net| (*net, holders.remove(net))).collect();
    holders.extend(held);
    before.into_iter().filter(|(net, node)| holders.get(net) != node.as_ref()).map(|(net, _)| net).collect()
}
