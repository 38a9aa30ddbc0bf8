//! Which of several claims to one key, prefix or address is believed.
//!
//! What is programmed stays, and no new claim is programmed over it; where none is, the older Node keeps a prefix and
//! a doubled key stays refused. So a Node that claims what another holds moves nothing, in whatever order both arrive.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{ObservedState, PublicKey, Reason, Refusal, overlaps, prefix::host_prefix, refusal::Claim};

/// Divides the claims into those to be believed and refusals by node name. `own` is always believed.
/// `holders` says which Node held a prefix at the last decision.
pub(crate) fn settle(
    own: &Claim,
    mut claims: Vec<Claim>,
    observed: &ObservedState,
    holders: &BTreeMap<IpNet, String>,
) -> (Vec<Claim>, BTreeMap<String, Refusal>) {
    let mut refusals = BTreeMap::new();
    let mut refuse = |claim: &Claim, reason| {
        refusals.insert(claim.node.clone(), Refusal { reason });
    };
    let keys = key_holders(&claims, observed);
    claims.sort_by_cached_key(|c| (!is_programmed(c, observed, holders), c.created, c.node.clone()));
    let mut held = Held::default();
    held.take(own);
    let mut believed = Vec::with_capacity(claims.len());
    for claim in claims {
        if claim.key() == own.key() {
            refuse(&claim, Reason::OwnKey);
            continue;
        }
        match keys.get(&claim.key()) {
            Some(Some(holder)) if *holder == claim.node => {}
            Some(holder) => {
                refuse(&claim, Reason::DuplicateKey { holder: holder.clone() });
                continue;
            }
            None => {}
        }
        match held.conflict(&claim) {
            Some(reason) => refuse(&claim, reason),
            None => {
                held.take(&claim);
                believed.push(claim);
            }
        }
    }
    (believed, refusals)
}

/// For each key that several Nodes claim, the one Node whose claim is programmed, if there is just one.
fn key_holders(claims: &[Claim], observed: &ObservedState) -> BTreeMap<PublicKey, Option<String>> {
    let mut by_key: BTreeMap<PublicKey, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        by_key.entry(claim.key()).or_default().push(claim);
    }
    by_key.retain(|_, claims| claims.len() > 1);
    let holder = |claims: Vec<&Claim>| {
        let mut programmed = claims.into_iter().filter(|c| has_in_kernel(c, observed));
        match (programmed.next(), programmed.next()) {
            (Some(one), None) => Some(one.node.clone()),
            _ => None,
        }
    };
    by_key.into_iter().map(|(key, claims)| (key, holder(claims))).collect()
}

fn is_programmed(claim: &Claim, observed: &ObservedState, holders: &BTreeMap<IpNet, String>) -> bool {
    claim.pod_cidrs.iter().any(|net| holders.get(net) == Some(&claim.node)) || has_in_kernel(claim, observed)
}

fn has_in_kernel(claim: &Claim, observed: &ObservedState) -> bool {
    let peer = observed.peers.get(&claim.key());
    peer.is_some_and(|p| claim.pod_cidrs.iter().any(|net| p.allowed_ips.contains(net)))
}

/// Prefixes that are taken, none overlapping another, by their first address.
#[derive(Default)]
struct Held(BTreeMap<IpAddr, (IpNet, String)>);

impl Held {
    fn take(&mut self, claim: &Claim) {
        for net in claim.pod_cidrs.iter().copied().chain(extra_addresses(claim)) {
            self.0.insert(net.network(), (net, claim.node.clone()));
        }
    }

    fn conflict(&self, claim: &Claim) -> Option<Reason> {
        let cidr = claim.pod_cidrs.iter().find_map(|net| {
            self.overlapping(net).map(|node| Reason::DuplicatePodCidr(*net, node.to_owned()))
        });
        cidr.or_else(|| {
            extra_addresses(claim).find_map(|net| {
                self.overlapping(&net).map(|node| Reason::DuplicateOverlayIp(net.addr(), node.to_owned()))
            })
        })
    }

    /// The node that holds a prefix overlapping this one: as none overlaps another, only the nearest can.
    fn overlapping(&self, net: &IpNet) -> Option<&str> {
        let below = self.0.range(..=net.network()).next_back();
        let within = self.0.range(net.network()..=net.broadcast()).next();
        below
            .into_iter()
            .chain(within)
            .find(|(_, (held, _))| overlaps(held, net))
            .map(|(_, (_, node))| node.as_str())
    }
}

/// The overlay addresses of a claim that lie outside its own PodCIDRs.
pub(crate) fn extra_addresses(claim: &Claim) -> impl Iterator<Item = IpNet> + '_ {
    let outside = |ip: &&IpAddr| !claim.pod_cidrs.iter().any(|net| net.contains(*ip));
    claim.advertisement.overlay_ips.iter().filter(outside).map(|ip| host_prefix(*ip))
}
