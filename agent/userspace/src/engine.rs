//! The device's data path: what is between the TUN link and the underlay.
//!
//! The protocol of one peer (handshake, sessions, timers) is gotatun's `Tunn`. Who is asked, by which packet, and what
//! happens to the answer is here. A packet stays on the thread that read it until it is written: no queue, no other task,
//! which is where gotatun's own device spends most of its time (docs/decisions/0014-own-data-path.md).
//!
//! ```text
//!  TUN ── read, cut ── seal ── send in trains ──► underlay      outbound    one thread carries both
//!      ◄─ join, write ── open ── receive trains ──              inbound     while it keeps up (threads)
//!                 peers ◄── timers, configuration               tokio
//! ```

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, task::AbortHandle};

pub(crate) use configure::{PeerChange, PeerStatus};
use identity::Identity;
use outbound::Outbound;
use peers::Peers;
use threads::Threads;

use crate::{tun::Tun, udp::Underlay};

mod configure;
mod identity;
mod inbound;
mod outbound;
mod peers;
mod threads;
mod timers;
mod wake;

/// A device that runs. It ends, and its threads with it, when this is dropped.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    mark: Mutex<u32>,
    threads: Vec<JoinHandle<()>>,
    timers: AbortHandle,
}

/// What the threads share.
struct Shared {
    tun: Tun,
    /// The link's MTU, in bytes, as it changes.
    mtu: watch::Receiver<u16>,
    outbound: Mutex<Outbound>,
    underlay: RwLock<Arc<Underlay>>,
    identity: RwLock<Arc<Identity>>,
    peers: Peers,
    threads: Threads,
    stopped: AtomicBool,
}

impl Shared {
    fn underlay(&self) -> Arc<Underlay> {
        Arc::clone(&self.underlay.read())
    }

    fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.read())
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Starts the threads for the link `tun`, whose MTU is `mtu`, with any port and a key that nobody knows.
    pub(crate) fn start(tun: Tun, mtu: watch::Receiver<u16>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tun,
            mtu,
            outbound: Mutex::new(Outbound::new()),
            underlay: RwLock::new(Arc::new(Underlay::bind(0, 0)?)),
            identity: RwLock::new(Arc::new(Identity::nobodys()?)),
            peers: Peers::new(),
            threads: Threads::new()?,
            stopped: AtomicBool::new(false),
        });
        let timed = Arc::clone(&shared);
        let timers = tokio::spawn(async move { timers::run(&timed).await }).abort_handle();
        let mut engine = Self { shared, mark: Mutex::new(0), threads: Vec::new(), timers };
        engine.spawn("carrier", threads::carry)?;
        engine.spawn("relief", threads::relieve)?;
        Ok(engine)
    }

    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared))?);
        Ok(())
    }

    fn ring(&self) {
        self.shared.threads.ring();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.timers.abort();
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.ring();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the device has panicked");
            }
        }
    }
}
