//! From what the cluster says and the kernel holds to what the kernel should hold.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use crate::{
    Advertisement, Changes, ClusterView, DesiredState, Local, LocalProblem, Mesh, NodeRecord, ObservedState,
    PublicKey, Refusal, Resolved, Underlay, UnderlayLink, claim::addresses,
};

/// What is to be done, and what is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What the kernel should hold.
    pub desired: DesiredState,
    /// What this node says of itself.
    pub advertisement: Advertisement,
    /// The PodCIDRs of this node.
    pub pod_cidrs: Vec<IpNet>,
    /// The Nodes that are not believed, by name.
    pub refusals: BTreeMap<String, Refusal>,
    /// Nodes whose annotated endpoint is a name without an answer, or an address without a route.
    pub unresolved: BTreeMap<String, String>,
    /// Which Node holds which prefix, for the next decision.
    pub holders: BTreeMap<IpNet, Arc<str>>,
}

impl Decision {
    /// Each peer's Node with its key and the prefixes that it holds. One that may be a mere copy of another holds none, and is
    /// left out.
    pub fn titles(&self) -> impl Iterator<Item = (&Arc<str>, PublicKey, impl Iterator<Item = &IpNet>)> {
        self.desired.peers.iter().filter_map(|(key, peer)| {
            let held = |net: &&IpNet| self.holders.get(*net) == Some(&peer.node);
            let mut prefixes = peer.allowed_ips.iter().filter(held).peekable();
            prefixes.peek()?;
            Some((&peer.node, *key, prefixes))
        })
    }
}

/// Decides what the kernel of this node should hold, from nothing but what is given: [`Mesh`] keeps a decision and
/// follows changes.
///
/// # Errors
/// [`LocalProblem`] where this node can't take part itself; the kernel is then left as it is.
pub fn decide(
    local: &Local,
    cluster: &ClusterView,
    resolved: &Resolved,
    observed: &ObservedState,
) -> Result<Decision, LocalProblem> {
    let mut mesh = Mesh::new(local.holders.clone(), local.key_holders.clone());
    Ok(mesh.judge(local, cluster, resolved, observed, Changes::default())?.0)
}

/// The link with the node's own InternalIP, else the one of the default route.
pub fn underlay_link<'a>(underlay: &'a Underlay, record: &NodeRecord) -> Option<&'a UnderlayLink> {
    let own = addresses(&record.internal_ips).find_map(|ip| underlay.link_of(&ip));
    own.or_else(|| {
        let default = underlay.routes.iter().filter(|r| r.destination.prefix_len() == 0);
        default.min_by_key(|r| r.metric).and_then(|r| underlay.links.get(&r.link))
    })
}
