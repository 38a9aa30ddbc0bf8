//! How often Nodes' changes are acted upon: a few at once, and then two a second. What comes meanwhile is decided together,
//! so that a Node that never stops changing costs little.

use std::time::Duration;

use tokio::time::Instant;

/// Between two rounds for changes that don't end.
const INTERVAL: Duration = Duration::from_millis(500);
/// Rounds that need not wait: a Node that joins says so in several changes.
const BURST: u32 = 4;

/// The generic cell rate algorithm (ITU-T I.371).
pub(super) struct Pace {
    /// When a round would have come if all had kept the interval.
    expected: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { expected: now }
    }

    /// Before this moment, none.
    pub(super) fn next(&self, now: Instant) -> Instant {
        self.expected.checked_sub(INTERVAL * (BURST - 1)).unwrap_or(now)
    }

    /// There is one.
    pub(super) fn note(&mut self, now: Instant) {
        self.expected = self.expected.max(now) + INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn no_time_sees_more_rounds_than_a_burst_and_two_a_second(gaps in vec(0..3000u64, 1..50)) {
            let mut now = Instant::now();
            let mut pace = Pace::new(now);
            let mut rounds = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                let at = pace.next(now).max(now);
                prop_assert!(at - now <= INTERVAL, "waits {:?}", at - now);
                now = at;
                pace.note(now);
                rounds.push(now);
            }
            for (index, first) in rounds.iter().enumerate() {
                for (count, last) in (1..).zip(&rounds[index..]) {
                    let allowed = BURST + ((*last - *first).as_millis() / INTERVAL.as_millis()) as u32;
                    prop_assert!(count <= allowed, "{count} rounds within {:?}", *last - *first);
                }
            }
        }
    }

    #[test]
    fn the_first_rounds_wait_for_nothing() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..BURST {
            assert!(pace.next(now) <= now);
            pace.note(now);
        }
        assert_eq!(pace.next(now), now + INTERVAL);
    }
}
