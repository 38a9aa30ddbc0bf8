//! Which of several claims to one key, prefix or address is believed.
//!
//! What is programmed stays, prefix by prefix, and no new claim is programmed over it; where none is, the older Node
//! keeps a prefix and a doubled key stays refused. So a Node that claims what another holds moves nothing, in
//! whatever order both arrive, and whatever else it holds itself.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    ClusterView, ObservedState, PublicKey, Reason, Refusal, Resolved, overlaps,
    prefix::host_prefix,
    reach::{Reach, first_of_each_family},
    refusal::Claim,
};

/// What decides between claims.
pub(crate) struct Evidence<'a> {
    pub(crate) cluster: &'a ClusterView,
    pub(crate) resolved: &'a Resolved,
    pub(crate) reach: &'a Reach<'a>,
    pub(crate) observed: &'a ObservedState,
    /// Which Node held a prefix at the last decision.
    pub(crate) holders: &'a BTreeMap<IpNet, String>,
}

/// Divides the claims into those to be believed and refusals by node name. `own` is always believed.
pub(crate) fn settle(
    own: &Claim,
    claims: Vec<Claim>,
    evidence: &Evidence<'_>,
) -> (Vec<Claim>, BTreeMap<String, Refusal>) {
    let mut refusals = BTreeMap::new();
    let mut claims = evidence.settle_keys(own, claims, &mut refusals);
    claims.sort_by(|a, b| a.age().cmp(&b.age()));
    let mut held = Held::default();
    held.take(own, |_| true);
    claims.iter().for_each(|claim| held.take(claim, |net| evidence.holds(claim, net)));
    claims.iter().for_each(|claim| held.take(claim, |net| evidence.is_in_kernel(claim, net)));
    let residents = evidence.residents(own);
    let mut believed = Vec::with_capacity(claims.len());
    for claim in claims {
        match held.conflict(&claim, &residents) {
            Some(reason) => {
                refusals.insert(claim.node.clone(), Refusal { reason });
            }
            None => {
                held.take(&claim, |_| true);
                believed.push(claim);
            }
        }
    }
    (believed, refusals)
}

impl Evidence<'_> {
    /// Leaves of the claims to one key that of the Node which is programmed with it, if there is just one.
    fn settle_keys(
        &self,
        own: &Claim,
        claims: Vec<Claim>,
        refusals: &mut BTreeMap<String, Refusal>,
    ) -> Vec<Claim> {
        let mut by_key: BTreeMap<PublicKey, Vec<Claim>> = BTreeMap::new();
        for claim in claims {
            by_key.entry(claim.key()).or_default().push(claim);
        }
        let mut settled = Vec::new();
        for (key, claims) in by_key {
            let holder = self.key_holder(&claims);
            let contested = claims.len() > 1;
            for mut claim in claims {
                let reason = if key == own.key() {
                    Reason::OwnKey
                } else if !contested || holder.as_ref() == Some(&claim.node) {
                    claim.contested = contested;
                    settled.push(claim);
                    continue;
                } else {
                    Reason::DuplicateKey { holder: holder.clone() }
                };
                refusals.insert(claim.node, Refusal { reason });
            }
        }
        settled
    }

    /// Of several claims to one key and prefix the one that asks for just what the kernel holds, else the oldest.
    fn key_holder(&self, claims: &[Claim]) -> Option<String> {
        let programmed = claims.iter().filter(|c| prefixes(c).any(|net| self.is_in_kernel(c, &net)));
        programmed.min_by_key(|c| (std::cmp::Reverse(self.likeness(c)), c.age())).map(|c| c.node.clone())
    }

    /// Whether the claim's prefixes are those that the kernel has at its key, and whether its endpoint is.
    fn likeness(&self, claim: &Claim) -> (bool, bool) {
        let Some(peer) = self.observed.peers.get(&claim.key()) else { return (false, false) };
        let record = self.cluster.get(&claim.node);
        let endpoint = record.and_then(|r| self.reach.endpoint(claim, r, self.resolved).ok()?);
        (peer.allowed_ips == prefixes(claim).collect(), peer.endpoint == endpoint.map(|(e, _)| e))
    }

    fn holds(&self, claim: &Claim, net: &IpNet) -> bool {
        self.holders.get(net) == Some(&claim.node)
    }

    /// Whether the kernel has a prefix at the claim's key; it can't have another's, so a copied key is no evidence.
    fn is_in_kernel(&self, claim: &Claim, net: &IpNet) -> bool {
        let peer = self.observed.peers.get(&claim.key());
        peer.is_some_and(|p| p.allowed_ips.contains(net))
            && self.holders.get(net).is_none_or(|holder| *holder == claim.node)
    }

    /// The addresses that Nodes live at, each with the age of the oldest Node that says so; this node's are the
    /// oldest. A Node may name any number of addresses: one of a family counts, so that it keeps no more prefixes
    /// from others than it could by claiming them.
    fn residents(&self, own: &Claim) -> Residents<'_> {
        let mut residents = Residents::new();
        for (name, record) in self.cluster {
            let age = (if *name == own.node { i64::MIN } else { record.created }, name.as_str());
            for ip in first_of_each_family(&record.internal_ips) {
                residents.entry(ip).and_modify(|oldest| *oldest = age.min(*oldest)).or_insert(age);
            }
        }
        residents
    }
}

type Residents<'a> = BTreeMap<IpAddr, (i64, &'a str)>;

/// Prefixes that are taken, none overlapping another, by their first address.
#[derive(Default)]
struct Held(BTreeMap<IpAddr, (IpNet, String)>);

impl Held {
    /// Takes those prefixes of a claim that nobody has.
    fn take(&mut self, claim: &Claim, which: impl Fn(&IpNet) -> bool) {
        for net in prefixes(claim).filter(which) {
            if self.overlapping(&net).next().is_none() {
                self.0.insert(net.network(), (net, claim.node.clone()));
            }
        }
    }

    fn conflict(&self, claim: &Claim, residents: &Residents<'_>) -> Option<Reason> {
        let cidrs = claim.pod_cidrs.iter().map(|net| (*net, true));
        let mut nets = cidrs.chain(extra_addresses(claim).map(|net| (net, false)));
        nets.find_map(|(net, is_pod_cidr)| {
            let (mut own, mut others) = (false, None);
            for (held, node) in self.overlapping(&net) {
                if *node == claim.node { own |= *held == net } else { others = Some(node.clone()) }
            }
            let resident = if own { None } else { resident(&net, claim, residents) };
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
    fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = &(IpNet, String)> {
        let before = self.0.range(..net.network()).next_back();
        let within = self.0.range(net.network()..=net.broadcast());
        before.into_iter().chain(within).map(|(_, held)| held).filter(move |(held, _)| overlaps(held, net))
    }
}

/// The address of another Node that was there before and that a new prefix would swallow.
fn resident<'a>(net: &IpNet, claim: &Claim, residents: &Residents<'a>) -> Option<(IpAddr, &'a str)> {
    let mut within = residents.range(net.network()..=net.broadcast());
    let older = within.find(|(_, age)| age.1 != claim.node && **age < claim.age());
    older.map(|(ip, age)| (*ip, age.1))
}

/// Every prefix that a claim asks for.
pub(crate) fn prefixes(claim: &Claim) -> impl Iterator<Item = IpNet> + '_ {
    claim.pod_cidrs.iter().copied().chain(extra_addresses(claim))
}

/// The overlay addresses of a claim that lie outside its own PodCIDRs.
fn extra_addresses(claim: &Claim) -> impl Iterator<Item = IpNet> + '_ {
    let outside = |ip: &&IpAddr| !claim.pod_cidrs.iter().any(|net| net.contains(*ip));
    claim.advertisement.overlay_ips.iter().filter(outside).map(|ip| host_prefix(*ip))
}
