//! How a thread sleeps until a descriptor is ready or another thread wakes it (eventfd(2)).

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

/// The bell of one thread.
pub(super) struct Wake(OwnedFd);

impl Wake {
    pub(super) fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Wakes the thread, now or when it is about to sleep.
    pub(super) fn ring(&self) {
        // Full only where it was rung without end: it wakes all the same.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Sleeps until one of `fds` is ready for what is asked of it, for as long as it takes, or until the bell.
    pub(super) fn wait(&self, fds: &[(BorrowedFd<'_>, PollFlags)]) {
        let fds = fds.iter().map(|(fd, what)| PollFd::from_borrowed_fd(*fd, *what));
        let mut fds: Vec<PollFd<'_>> = fds.chain([PollFd::new(&self.0, PollFlags::IN)]).collect();
        match poll(&mut fds, None) {
            Ok(_) if fds.last().is_some_and(|bell| !bell.revents().is_empty()) => self.clear(),
            Ok(_) => {}
            Err(error) => self.failed(error),
        }
    }

    /// Sleeps 100 ms or until the bell: after an error that may stay, so that it does not take a core.
    pub(super) fn pause(&self) {
        let time = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        if let Ok(1..) = poll(&mut fds, Some(&time)) {
            self.clear();
        }
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// EINTR comes and goes, ENOMEM might not.
    fn failed(&self, error: Errno) {
        if error != Errno::INTR {
            tracing::warn!(%error, "poll failed");
            self.pause();
        }
    }
}
