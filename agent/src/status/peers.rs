//! Whether a peer is up, idle or down, told from what WireGuard counts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use wg_overlay_mesh::{ObservedPeer, PublicKey};

/// How a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PeerState {
    /// It is sent to and nothing comes back.
    Down,
    /// It is not believed and not programmed.
    Refused,
    /// Its endpoint is a name that has no answer yet.
    Unresolved,
    /// A handshake is fresh.
    Up,
    /// Nothing was sent for a while: an old handshake means nothing then.
    Idle,
    /// No agent has published a key there.
    NoAgent,
}

/// A peer that is sent to answers within KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, 15 s (WireGuard paper, section 6.1);
/// as much again is left for a slow path.
const UNANSWERED: Duration = Duration::from_secs(30);

/// Remembers since when each peer has been sent to without an answer.
#[derive(Default)]
pub struct PeerTracker(BTreeMap<PublicKey, Track>);

#[derive(Default)]
struct Track {
    received: u64,
    sent: u64,
    unanswered_since: Option<Instant>,
}

impl PeerTracker {
    /// Takes what was counted now.
    pub fn observe(&mut self, peers: &BTreeMap<PublicKey, ObservedPeer>, now: Instant) {
        let before = std::mem::take(&mut self.0);
        let track = |(key, peer): (&PublicKey, &ObservedPeer)| {
            let unanswered_since = match before.get(key) {
                Some(track) if track.received == peer.received => {
                    track.unanswered_since.or((peer.sent > track.sent).then_some(now))
                }
                _ => None,
            };
            (*key, Track { received: peer.received, sent: peer.sent, unanswered_since })
        };
        self.0 = peers.iter().map(track).collect();
    }

    /// Counts from nothing for a peer that is new.
    pub fn begin(&mut self, key: PublicKey) {
        self.0.insert(key, Track::default());
    }

    /// How a peer is, and for how long it has been sent to without an answer.
    pub fn state(&self, key: &PublicKey, peer: &ObservedPeer, now: Instant) -> (PeerState, Option<Duration>) {
        let unanswered = self
            .0
            .get(key)
            .and_then(|t| t.unanswered_since)
            .map(|since| now.saturating_duration_since(since));
        let never_answered = peer.handshake_age.is_none() && peer.sent > 0 && peer.received == 0;
        let fresh = peer.has_session();
        match unanswered {
            Some(time) if time >= UNANSWERED && (!fresh || never_answered) => (PeerState::Down, unanswered),
            _ if fresh => (PeerState::Up, None),
            _ => (PeerState::Idle, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(received: u64, sent: u64, age: Option<u64>) -> ObservedPeer {
        ObservedPeer {
            received,
            sent,
            handshake_age: age.map(Duration::from_secs),
            ..ObservedPeer::default()
        }
    }

    fn state_after(steps: &[(u64, ObservedPeer)]) -> PeerState {
        let key = PublicKey::parse("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=").unwrap();
        let start = Instant::now();
        let mut tracker = PeerTracker::default();
        let mut state = PeerState::Idle;
        for (second, peer) in steps {
            let now = start + Duration::from_secs(*second);
            tracker.observe(&BTreeMap::from([(key, peer.clone())]), now);
            state = tracker.state(&key, peer, now).0;
        }
        state
    }

    #[test]
    fn a_fresh_handshake_is_up_and_an_old_one_without_traffic_is_idle() {
        assert_eq!(state_after(&[(0, peer(10, 10, Some(5)))]), PeerState::Up);
        assert_eq!(
            state_after(&[(0, peer(10, 10, Some(7200))), (600, peer(10, 10, Some(7800)))]),
            PeerState::Idle
        );
    }

    #[test]
    fn sent_for_a_while_and_nothing_back_is_down() {
        let silent =
            [(0, peer(10, 10, Some(500))), (60, peer(10, 500, Some(560))), (120, peer(10, 900, Some(620)))];
        assert_eq!(state_after(&silent), PeerState::Down);
        let never = [(0, peer(0, 0, None)), (60, peer(0, 500, None)), (120, peer(0, 900, None))];
        assert_eq!(state_after(&never), PeerState::Down);
    }

    #[test]
    fn an_answer_ends_it() {
        let back =
            [(0, peer(10, 10, Some(500))), (60, peer(10, 500, Some(560))), (120, peer(20, 900, Some(1)))];
        assert_eq!(state_after(&back), PeerState::Up);
    }
}
