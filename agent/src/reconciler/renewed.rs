//! Which refused peers begin anew: `renewals` says who, this says not again so soon.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracing::warn;
use wg_overlay_host::Host;
use wg_overlay_mesh::{DesiredState, PublicKey, Step, renewals};

use crate::cluster::chain;

/// A peer begins anew once in this time at most: anybody can send what looks like its handshake.
const APART: Duration = Duration::from_secs(300);

/// When each peer began anew last.
#[derive(Default)]
pub(super) struct Renewed(BTreeMap<PublicKey, Instant>);

impl Renewed {
    /// The steps that are due now, counted as done.
    pub(super) fn due(&mut self, host: &Host, desired: &DesiredState, now: Instant) -> Vec<Step> {
        match host.nft().unanswered() {
            Ok(unanswered) => {
                let steps = renewals(desired, host.observed(), &unanswered).into_iter();
                steps
                    .filter(|step| matches!(step, Step::SetPeer(peer) if self.admit(peer.public_key, now)))
                    .collect()
            }
            Err(error) => {
                warn!(error = %chain(&error), "can't tell whose handshakes have no answer");
                Vec::new()
            }
        }
    }

    fn admit(&mut self, key: PublicKey, now: Instant) -> bool {
        self.0.retain(|_, then| now.duration_since(*then) < APART);
        let admitted = !self.0.contains_key(&key);
        if admitted {
            self.0.insert(key, now);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_peer_begins_anew_at_once_and_then_once_in_five_minutes(
            gaps in prop::collection::vec((0u64..400, 1u8..4), 1..60),
        ) {
            let (mut renewed, mut now) = (Renewed::default(), Instant::now());
            let mut last = BTreeMap::new();
            for (seconds, who) in gaps {
                now += Duration::from_secs(seconds);
                let key = PublicKey::from_bytes([who; 32]).unwrap();
                let due = last.get(&who).is_none_or(|then| now.duration_since(*then) >= APART);
                prop_assert_eq!(renewed.admit(key, now), due);
                if due {
                    last.insert(who, now);
                }
                prop_assert!(renewed.0.len() <= 3);
            }
        }
    }
}
