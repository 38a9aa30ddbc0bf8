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

    /// Hands the outward direction over, if it isn't the relief's already.
    pub(super) fn call_relief(&self) {
        if !self.relieved.swap(true, Ordering::AcqRel) {
            self.relief.ring();
        }
    }

    fn dismiss_relief(&self) {
        self.relieved.store(false, Ordering::Release);
        self.carrier.ring();
    }
}

/// The carrier's life, until the device ends or the link is gone.
pub(super) fn carry(shared: &Shared) {
    let _recycler = Recycler::new();
    let threads = &shared.threads;
    let bell = &threads.carrier;
    let mut inbound = Inbound::new(shared);
    // Turns since the last sleep.
    let mut turns = 0_u32;
    // Whether the link was given packets since the last sleep.
    let mut written = false;
    while !shared.is_stopped() {
        let relieved = threads.relieved();
        let calls = if turns == 0 { 1 } else { CALLS };
        let Ok(received) = inbound.turn(shared, calls) else { return };
        written |= received.written;
        let sent = if !relieved {
            shared.outbound.lock().turn(shared, bell, calls)
        } else if !received.more && std::mem::take(&mut written) {
            // This node's own answer waits already; until the relief is awake takes longer than to send it.
            shared.outbound.try_lock().map_or(Ok(false), |mut outbound| outbound.turn(shared, bell, 1))
        } else {
            Ok(false)
        };
        let more = match sent {
            Ok(more) => more && !relieved,
            Err(Errno::BADFD) => return,
            Err(error) => {
                tracing::debug!(%error, "reading from the TUN link failed");
                false
            }
        };
        if received.failed || sent.is_err() {
            // What fails in one direction must not hold the other.
            threads.call_relief();
            bell.pause();
        }
        turns = if relieved { 1 } else { turns.saturating_add(1) };
        if received.more || more {
            if turns > BUSY_TURNS {
                threads.call_relief();
            }
            continue;
        }
        (turns, written) = (0, false);
        // What the bell told may have ended a wait before this one.
        if shared.is_stopped() || relieved != threads.relieved() {
            continue;
        }
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
            if !shared.is_stopped() {
                bell.wait(&[(shared.tun.as_fd(), PollFlags::IN)]);
            }
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
