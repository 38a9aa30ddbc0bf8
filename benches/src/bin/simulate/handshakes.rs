//! A node comes back, and all its peers begin a handshake: a simulation, event by event, of the responder's queue as the
//! kernel has it (drivers/net/wireguard: messages.h, receive.c, cookie.c).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Initiations that wait at most; the next is dropped (MAX_QUEUED_INCOMING_HANDSHAKES).
const QUEUE: u64 = 4096;
/// With so many waiting it is under load, and answers with a cookie who has none.
const UNDER_LOAD: u64 = QUEUE / 8;
/// It stays under load for so long, in microseconds.
const LOAD_LASTS: u64 = 1_000_000;
/// Until an initiation is repeated, and the jitter on it, in microseconds (REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX_JIFFIES).
const RETRY: u64 = 5_000_000;
const JITTER: u64 = 333_000;
/// All peers begin within so many microseconds.
const WINDOW: u64 = 1_000_000;
/// What a cookie costs, in microseconds.
const COOKIE: u64 = 2;

/// How a storm of handshakes ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Seconds until the last session is up.
    pub seconds: f64,
    /// Initiations answered with a cookie.
    pub cookies: u64,
    /// Initiations dropped.
    pub dropped: u64,
}

/// Lets so many peers begin; a handshake takes one core so many seconds.
pub fn storm(peers: usize, cost: f64) -> Outcome {
    let cost = (cost * 1e6).max(1.0) as u64;
    let mut random = Random(1);
    // When it arrives, of whom, with a cookie or not.
    let mut arrivals: BinaryHeap<Reverse<(u64, usize, bool)>> =
        (0..peers).map(|peer| Reverse((random.below(WINDOW), peer, false))).collect();
    let mut outcome = Outcome::default();
    let (mut free, mut loaded_until, mut last) = (0_u64, 0_u64, 0_u64);
    while let Some(Reverse((now, peer, cookie))) = arrivals.pop() {
        // Work ahead of it, in initiations: those with the cost of a cookie count as less.
        let waiting = free.saturating_sub(now) / cost;
        let again = now + RETRY + random.below(JITTER);
        if waiting >= QUEUE {
            outcome.dropped += 1;
            arrivals.push(Reverse((again, peer, cookie)));
            continue;
        }
        if waiting >= UNDER_LOAD {
            loaded_until = now + LOAD_LASTS;
        }
        if now < loaded_until && !cookie {
            outcome.cookies += 1;
            free = free.max(now) + COOKIE;
            arrivals.push(Reverse((again, peer, true)));
        } else {
            free = free.max(now) + cost;
            last = last.max(free);
        }
    }
    outcome.seconds = last as f64 / 1e6;
    outcome
}

/// The same numbers in each run (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_takes_no_less_than_the_work_and_few_need_no_cookie(peers in 1_usize..3000, micros in 1_u32..400) {
            let cost = f64::from(micros) / 1e6;
            let outcome = storm(peers, cost);
            prop_assert!(outcome.seconds >= cost * peers as f64);
            if (peers as u64) < UNDER_LOAD {
                prop_assert_eq!((outcome.cookies, outcome.dropped), (0, 0));
            }
        }

        #[test]
        fn a_faster_node_is_never_later(peers in 1_usize..20_000) {
            prop_assert!(storm(peers, 50e-6).seconds <= storm(peers, 500e-6).seconds + RETRY as f64 / 1e6);
        }
    }

    #[test]
    fn what_is_dropped_comes_again() {
        let outcome = storm(100_000, 1e-3);
        assert!(outcome.dropped > 0 && outcome.seconds >= 100.0, "{outcome:?}");
    }
}
