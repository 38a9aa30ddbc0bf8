//! The decision, kept and followed: what changed is decided anew, with what it can be felt by, and the rest stays.
//!
//! Owns what is known of each Node, so that a record is parsed when it changes and at no other time, and the index of who
//! claims what. It knows no rule of its own: claims are read in [`crate::basis`] and settled in [`crate::conflict`],
//! all of them or a part that nothing else touches. After each update the decision is what [`crate::decide`] gives for
//! the same input.

mod follow;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    Cluster, Decision, Local, LocalProblem, NodeRecord, ObservedState, PublicKey, Refusal, Resolved,
    basis::Basis,
    claim::Known,
    conflict::{Believed, Evidence, settle},
    index::Index,
    next_socket,
};

/// What is different since the last update.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The Nodes whose record came, went or changed.
    pub nodes: BTreeSet<String>,
    /// The keys at which the observed peers differ in anything but traffic and handshakes.
    pub peers: BTreeSet<PublicKey>,
}

/// Where a decision may differ from the one before, and so where desired and observed may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Anywhere.
    Everything,
    /// Here and nowhere else.
    Only(Part),
}

impl Touched {
    /// The part that was touched; `None` for everything.
    pub fn part(&self) -> Option<&Part> {
        match self {
            Self::Everything => None,
            Self::Only(part) => Some(part),
        }
    }
}

/// A part of a decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The Nodes that were decided on.
    pub nodes: BTreeSet<Arc<str>>,
    /// Their keys, before and after.
    pub peers: BTreeSet<PublicKey>,
    /// Their prefixes, before and after.
    pub prefixes: BTreeSet<IpNet>,
    /// Their sockets, before and after.
    pub endpoints: BTreeSet<SocketAddr>,
}

/// A decision that follows what changes.
#[derive(Debug, Default)]
pub struct Mesh {
    /// `None` where everything must be read again.
    basis: Option<Basis>,
    resolved: Resolved,
    nodes: BTreeMap<Arc<str>, Known>,
    index: Index,
    decision: Option<Decision>,
    /// The prefixes whose holder changed with the last decision: that alone may decide a conflict anew.
    moved: BTreeSet<IpNet>,
    /// Who held which prefix before the first decision.
    holders: BTreeMap<IpNet, Arc<str>>,
    /// Who held which key before it.
    key_holders: BTreeMap<PublicKey, Arc<str>>,
}

/// This many changes at least are followed one by one; more, if they are an eighth of the cluster, are decided on with
/// all the rest.
const FOLLOWED: usize = 64;

impl Mesh {
    /// Begins with who held which prefix and which key at an earlier decision.
    pub fn new(holders: BTreeMap<IpNet, Arc<str>>, key_holders: BTreeMap<PublicKey, Arc<str>>) -> Self {
        Self { holders, key_holders, ..Self::default() }
    }

    /// The last decision; `None` before the first.
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.as_ref()
    }

    /// The names whose answers the decision depends on.
    pub fn names(&self) -> impl Iterator<Item = &String> + Clone {
        self.index.names()
    }

    /// Decides again, by what changed since the last call. `local`'s holders are not read: those of the last decision
    /// count. What else changed (own Node, settings, underlay, names' answers) is found here.
    ///
    /// # Errors
    /// [`LocalProblem`] where this node can't take part itself; the last decision then stays.
    pub fn update(
        &mut self,
        local: &Local,
        cluster: &impl Cluster,
        resolved: &Resolved,
        observed: &ObservedState,
        changes: Changes,
    ) -> Result<Touched, LocalProblem> {
        let (decision, touched) = self.judge(local, cluster, resolved, observed, changes)?;
        self.decision = Some(decision);
        Ok(touched)
    }

    /// The same, with the decision taken out.
    pub(crate) fn judge(
        &mut self,
        local: &Local,
        cluster: &impl Cluster,
        resolved: &Resolved,
        observed: &ObservedState,
        changes: Changes,
    ) -> Result<(Decision, Touched), LocalProblem> {
        let record = cluster.record(&local.node_name);
        let kept = self.basis.take().filter(|b| record.as_ref().is_some_and(|r| b.holds(local, r, observed)));
        let record = record.ok_or_else(|| LocalProblem::NoNode(local.node_name.clone()))?;
        let known = kept.is_some();
        let basis = match kept {
            Some(basis) => basis,
            None => Basis::new(local, &record, observed)?,
        };
        let many = changes.nodes.len() + changes.peers.len() + self.moved.len();
        let part = known && self.resolved == *resolved && many <= FOLLOWED.max(self.nodes.len() / 8);
        let outcome = match self.decision.take() {
            Some(decision) if part => self.follow(&basis, decision, cluster, observed, changes),
            before => {
                if known {
                    changes
                        .nodes
                        .iter()
                        .for_each(|name| drop(self.read(&basis, name, cluster.record(name).as_deref())));
                } else {
                    self.read_all(&basis, cluster);
                }
                self.resolved.clone_from(resolved);
                let holders = before.map_or_else(|| std::mem::take(&mut self.holders), |d| d.holders);
                (self.decide_all(&basis, &holders, observed), Touched::Everything)
            }
        };
        self.basis = Some(basis);
        Ok(outcome)
    }

    fn read_all(&mut self, basis: &Basis, cluster: &impl Cluster) {
        self.nodes.clear();
        self.index = Index::default();
        // whoever else names an address of this node, it was there before
        self.index.add_residents(&basis.own.node, i64::MIN, &basis.addresses());
        for (name, record) in cluster.records() {
            self.read(basis, name, Some(&record));
        }
        rebuild(&mut self.nodes);
        self.index.rebuild();
    }

    /// Reads what a Node says now. Gives what was known of it before.
    fn read(&mut self, basis: &Basis, name: &str, record: Option<&NodeRecord>) -> Option<(Arc<str>, Known)> {
        if *name == *basis.own.node {
            return None;
        }
        let before = self.nodes.remove_entry(name);
        if let Some((node, known)) = &before {
            self.index.remove(node, known, next_key(basis, known), &sockets(basis, known));
        }
        if let Some(record) = record {
            let node = before.as_ref().map_or_else(|| Arc::from(name), |(node, _)| node.clone());
            let known = basis.read(&node, record);
            self.index.insert(&node, &known, next_key(basis, &known), &sockets(basis, &known));
            self.nodes.insert(node, known);
        }
        before
    }

    fn decide_all(
        &mut self,
        basis: &Basis,
        holders: &BTreeMap<IpNet, Arc<str>>,
        observed: &ObservedState,
    ) -> Decision {
        let mut decision = Decision {
            desired: basis.desired(self.index.endpoints()),
            advertisement: basis.advertisement.clone(),
            pod_cidrs: basis.pod_cidrs.clone(),
            refusals: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            holders: basis.pod_cidrs.iter().map(|net| (*net, basis.own.node.clone())).collect(),
        };
        let held = self.add(basis, &self.nodes, holders, observed, &mut decision);
        decision.holders.extend(held);
        rebuild(&mut decision.desired.peers);
        if let Some(next) = &mut decision.desired.next {
            rebuild(&mut next.peers);
            rebuild(&mut next.pairs);
        }
        rebuild(&mut decision.desired.routes);
        rebuild(&mut decision.holders);
        let differs = |(net, node): &(&IpNet, &Arc<str>)| decision.holders.get(*net) != Some(node);
        let gone = holders.iter().filter(differs).map(|(net, _)| *net);
        let new = decision.holders.iter().filter(|(net, node)| holders.get(*net) != Some(node));
        self.moved = gone.chain(new.map(|(net, _)| *net)).collect();
        decision
    }

    /// Settles the claims of these Nodes and adds what comes of them. Gives who then holds which prefix.
    fn add<'a>(
        &self,
        basis: &Basis,
        nodes: impl IntoIterator<Item = (&'a Arc<str>, &'a Known)>,
        holders: &BTreeMap<IpNet, Arc<str>>,
        observed: &ObservedState,
        decision: &mut Decision,
    ) -> Vec<(IpNet, Arc<str>)> {
        let refusals = &mut decision.refusals;
        let mut refuse = |node: &Arc<str>, reason| refusals.insert(node.to_string(), Refusal { reason });
        let mut claims = Vec::new();
        for (node, known) in nodes {
            match &known.claim {
                Ok(claim) => claims.push(claim),
                Err(reason) => drop(refuse(node, reason.clone())),
            }
        }
        let (resolved, index, reach) = (&self.resolved, &self.index, basis.reach());
        let (nodes, key_holders) = (&self.nodes, &self.key_holders);
        let evidence = Evidence { resolved, reach, observed, index, nodes, holders, key_holders };
        let (believed, refused) = settle(&basis.own, claims, &evidence);
        refused.into_iter().for_each(|(claim, reason)| drop(refuse(&claim.node, reason)));
        let mut held = Vec::with_capacity(2 * believed.len());
        for Believed { claim, contested } in believed {
            // a perfect copy may be taken for its original: that is no title for what it claims later
            let lasting = |net: &IpNet| !contested || holders.get(net).is_some_and(|h| **h == *claim.node);
            held.extend(claim.prefixes().filter(lasting).map(|net| (net, claim.node.clone())));
            match reach.endpoint(claim, resolved) {
                Ok(endpoint) => {
                    if let (None, Some(spec)) = (endpoint, &claim.endpoint) {
                        decision.unresolved.insert(claim.node.to_string(), spec.to_string());
                    }
                    let found = observed.peers.get(&claim.key).and_then(|p| p.endpoint);
                    let next = basis.rotation(claim).filter(|(key, _)| evidence.has_next_key(*key, claim));
                    basis.add_peer(claim, endpoint, found, next, &mut decision.desired);
                }
                Err(reason) => drop(refuse(&claim.node, reason)),
            }
        }
        held
    }
}

/// Gives back what growing left: a tree that grows in order has nodes that are half empty, and one that is built in one go
/// has full ones.
pub(crate) fn rebuild<T: Default + IntoIterator + FromIterator<T::Item>>(tree: &mut T) {
    *tree = std::mem::take(tree).into_iter().collect();
}

/// The second key of a Node, while this node speaks with it by the second device.
fn next_key(basis: &Basis, known: &Known) -> Option<PublicKey> {
    known.claim.as_ref().ok().and_then(|claim| basis.rotation(claim)).map(|(key, _)| key)
}

/// The sockets of a Node that pods may not send to.
fn sockets(basis: &Basis, known: &Known) -> BTreeSet<SocketAddr> {
    let Ok(claim) = &known.claim else { return BTreeSet::new() };
    let mut sockets = basis.reach().guarded(claim);
    if basis.rotation(claim).is_some() {
        sockets.extend(sockets.iter().copied().map(next_socket).collect::<Vec<_>>());
    }
    sockets
}
