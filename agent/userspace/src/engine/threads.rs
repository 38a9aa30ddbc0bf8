//! Which thread carries what.
//!
//! Where little passes, nothing costs as much as waking a thread: more than to carry a packet. So one thread, the carrier,
//! waits for both directions and carries them in turns. Where it no longer comes to sleep it calls the other, the relief,
//! which takes the outward direction over until it has mostly slept for a while.

use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, io::Errno};

use super::{Shared, inbound::Inbound, wake::Wake};
use crate::recycle::Recycler;

/// Most calls of one turn, whatever came: packets to nobody must not hold the others back. The first turn after a sleep
/// has one: what comes alone goes at once.
const CALLS: usize = 64;

/// The carrier's turns without a sleep after which it calls the relief: some ms of full batches.
const BUSY_TURNS: u32 = 16;

/// How long the relief's sleep is counted before it looks whether it is needed.
const WATCH: Duration = Duration::from_millis(10);

/// The part of its time that the relief must be busy to stay.
const NEEDED: u32 = 4;

/// How the two know of each other.
pub(super) struct Threads {
    carrier: Wake,
    relief: Wake,
    /// Whether the outward direction is the relief's. The carrier says yes, the relief no.
    relieved: AtomicBool,
}

impl Threads {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { carrier: Wake::new()?, relief: Wake::new()?, relieved: AtomicBool::new(false) })
    }

    /// Wakes both, now or when they are about to sleep.
    pub(super) fn ring(&self) {
        self.carrier.ring();
        self.relief.ring();
    }

    fn relieved(&self) -> bool {
        self.relieved.load(Ordering::Acquire)
    }

    fn call_relief(&self) {
        self.relieved.store(true, Ordering::Release);
        self.relief.ring();
    }

    fn dismiss_relief(&self) {
        self.relieved.store(false, Ordering::Release);
        self.carrier.ring();
    }
}

/// The carrier's life, until the device ends or the link is gone.
pub(super) fn carry(shared: &Shared) {
    let _recycler = Recycler::new();
    let bell = &shared.threads.carrier;
    let mut inbound = Inbound::new(shared);
    // Turns since the last sleep.
    let mut turns = 0_u32;
    while !shared.is_stopped() {
        let calls = if turns == 0 { 1 } else { CALLS };
        let Ok(received) = inbound.turn(shared, bell, calls) else { return };
        let relieved = shared.threads.relieved();
        let outbound = if !relieved {
            Some(shared.outbound.lock())
        } else if received.written {
            // This node's own answer waits already; until the relief is awake takes longer than to send it.
            shared.outbound.try_lock()
        } else {
            None
        };
        let sent = outbound.map_or(Ok(false), |mut outbound| outbound.turn(shared, bell, calls));
        let more = match sent {
            Ok(more) => more && !relieved,
            Err(Errno::BADFD) => return,
            Err(error) => {
                tracing::debug!(%error, "reading from the TUN link failed");
                bell.pause();
                false
            }
        };
        turns = turns.saturating_add(1);
        if received.more || more {
            if turns > BUSY_TURNS && !relieved {
                shared.threads.call_relief();
            }
            continue;
        }
        turns = 0;
        let underlay = shared.underlay();
        let both = [(underlay.as_fd(), PollFlags::IN), (shared.tun.as_fd(), PollFlags::IN)];
        bell.wait(if relieved { &both[..1] } else { &both });
    }
}

/// The relief's life, until the device ends or the link is gone.
pub(super) fn relieve(shared: &Shared) {
    let _recycler = Recycler::new();
    let bell = &shared.threads.relief;
    let mut since = Instant::now();
    let mut busy = Duration::ZERO;
    while !shared.is_stopped() {
        if !shared.threads.relieved() {
            bell.wait(&[]);
            (since, busy) = (Instant::now(), Duration::ZERO);
            continue;
        }
        let begun = Instant::now();
        match all(shared, bell) {
            Ok(()) => {}
            Err(Errno::BADFD) => return,
            Err(error) => {
                tracing::debug!(%error, "reading from the TUN link failed");
                bell.pause();
            }
        }
        busy += begun.elapsed();
        let passed = since.elapsed();
        if passed < WATCH {
            bell.wait(&[(shared.tun.as_fd(), PollFlags::IN)]);
        } else {
            if busy < passed / NEEDED {
                shared.threads.dismiss_relief();
            }
            (since, busy) = (Instant::now(), Duration::ZERO);
        }
    }
}

/// Sends all that waits outwards.
fn all(shared: &Shared, bell: &Wake) -> Result<(), Errno> {
    // The lock ends before the sleep.
    let mut outbound = shared.outbound.lock();
    let mut calls = 1;
    while outbound.turn(shared, bell, calls)? && !shared.is_stopped() {
        calls = CALLS;
    }
    Ok(())
}
