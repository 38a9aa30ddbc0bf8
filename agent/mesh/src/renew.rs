//! Peers whose handshakes this node refuses: they begin anew.
//!
//! A device takes a peer's handshake only if its timestamp is later than the last one's (WireGuard paper, section 5.1), and
//! forgets that one with the peer. A peer whose clock was set back is refused until its clock has caught up, and nothing
//! says so but that its initiations have no answer. It stands apart from `plan`: the kernel is as it should be.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{DesiredState, Link, ObservedState, PeerChange, Step, plan::new_peer};

/// Twelve tries (REKEY_TIMEOUT, 5 s): a path that loses some lets one through.
const PATIENCE: Duration = Duration::from_secs(60);

/// One step for each peer that is to be removed and added again, with all it should have: it has no session, and
/// initiations from its address have had no answer for a minute. `unanswered` is how long that is, by address. The port is
/// not asked: behind NAT it is another.
pub fn renewals(
    desired: &DesiredState,
    observed: &ObservedState,
    unanswered: &BTreeMap<IpAddr, Duration>,
) -> Vec<Step> {
    if unanswered.is_empty() {
        return Vec::new();
    }
    let renewal = |(key, peer)| {
        let found = observed.peers.get(key)?;
        let since = unanswered.get(&found.endpoint?.ip().to_canonical())?;
        (!found.has_session() && *since >= PATIENCE).then(|| {
            let added = new_peer(Link::Device, *key, peer);
            let endpoint = added.endpoint.or(found.endpoint);
            Step::SetPeer(PeerChange { renew: true, endpoint, ..added })
        })
    };
    desired.peers.iter().filter_map(renewal).collect()
}
