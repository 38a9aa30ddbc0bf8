//! The peers, and the ways to one: by key, by allowed IP, by the index of a handshake or session.
//!
//! Locks are held for one look-up or change. Where two are held, a peer's own comes before a table's.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use gotatun::{
    noise::{Tunn, index_table::IndexTable},
    packet::WgKind,
    x25519::PublicKey,
};
use ip_network_table::IpNetworkTable;
use ipnetwork::IpNetwork;
use parking_lot::{Mutex, RwLock};

/// One peer.
pub(crate) struct Peer {
    pub(super) key: PublicKey,
    pub(super) state: Mutex<PeerState>,
}

/// What changes with each packet of a peer.
pub(super) struct PeerState {
    /// The protocol's side: handshake, sessions, timers, counters.
    pub(super) tunnel: Tunn,
    pub(super) endpoint: Option<SocketAddr>,
    /// The index of the last session that the peer has shown to share, and since when.
    session: Option<(u32, Instant)>,
    /// Whether it was taken off the device. A thread may still hold it; it gets no index any more.
    removed: bool,
}

impl Peer {
    pub(super) fn new(key: PublicKey, tunnel: Tunn) -> Arc<Self> {
        Arc::new(Self {
            key,
            state: Mutex::new(PeerState { tunnel, endpoint: None, session: None, removed: false }),
        })
    }
}

impl PeerState {
    /// Takes note of a message of the session `index`. Whoever answers a handshake knows by the first of these that the
    /// other side has its answer (white paper, 5.1), and that the handshake was not somebody's repetition.
    pub(super) fn confirm(&mut self, index: u32) {
        if self.session.is_none_or(|(known, _)| known != index) {
            self.session = Some((index, Instant::now()));
        }
    }

    /// How long ago the handshake of the session was; `None` without a session.
    pub(super) fn last_handshake(&self) -> Option<Duration> {
        self.tunnel.time_since_last_handshake().and(self.session).map(|(_, since)| since.elapsed())
    }
}

/// All peers of a device.
pub(super) struct Peers {
    /// Gives the indices out, and knows which are in use.
    pub(super) indices: IndexTable,
    by_key: RwLock<HashMap<PublicKey, Arc<Peer>>>,
    by_address: RwLock<IpNetworkTable<Arc<Peer>>>,
    by_index: RwLock<HashMap<u32, Arc<Peer>>>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            indices: IndexTable::from_os_rng(),
            by_key: RwLock::default(),
            by_address: RwLock::new(IpNetworkTable::new()),
            by_index: RwLock::default(),
        }
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        self.by_key.read().get(key).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.by_key.read().values().cloned().collect()
    }

    pub(super) fn insert(&self, peer: Arc<Peer>) {
        self.by_key.write().insert(peer.key, peer);
    }

    /// Takes the peer away, which holds no prefix any more, with the indices that lead to it.
    pub(super) fn remove(&self, key: &PublicKey) {
        let Some(peer) = self.by_key.write().remove(key) else { return };
        peer.state.lock().removed = true;
        self.by_index.write().retain(|_, holder| !Arc::ptr_eq(holder, &peer));
    }

    /// Takes all peers away.
    pub(super) fn clear(&self) {
        let peers = std::mem::take(&mut *self.by_key.write());
        *self.by_address.write() = IpNetworkTable::new();
        for peer in peers.values() {
            peer.state.lock().removed = true;
        }
        self.by_index.write().clear();
    }

    /// Gives `prefix` to `peer`, whoever held it.
    pub(super) fn route(&self, prefix: IpNetwork, peer: &Arc<Peer>) {
        if let Some(network) = network(prefix) {
            self.by_address.write().insert(network, Arc::clone(peer));
        }
    }

    pub(super) fn unroute(&self, prefix: IpNetwork) {
        if let Some(network) = network(prefix) {
            self.by_address.write().remove(network);
        }
    }

    /// Who holds the longest prefix of `address`.
    pub(super) fn of_address(&self, address: IpAddr) -> Option<Arc<Peer>> {
        self.by_address.read().longest_match(address).map(|(_, peer)| Arc::clone(peer))
    }

    /// Whose handshake or session `index` is.
    pub(super) fn of_index(&self, index: u32) -> Option<Arc<Peer>> {
        self.by_index.read().get(&index).cloned()
    }

    /// Has answers to `message`, which `state` of `peer` has made, find their way to it.
    pub(super) fn register(&self, message: &WgKind, state: &PeerState, peer: &Arc<Peer>) {
        let index = match message {
            WgKind::HandshakeInit(init) => init.sender_idx.get(),
            WgKind::HandshakeResp(response) => response.sender_idx.get(),
            WgKind::CookieReply(_) | WgKind::Data(_) => return,
        };
        if !state.removed {
            self.by_index.write().insert(index, Arc::clone(peer));
        }
    }

    /// Forgets the indices of handshakes and sessions that are over.
    pub(super) fn sweep(&self) {
        let over = |index: &u32| !self.indices.in_use(*index);
        if self.by_index.read().keys().any(over) {
            self.by_index.write().retain(|index, _| !over(index));
        }
    }
}

fn network(prefix: IpNetwork) -> Option<ip_network::IpNetwork> {
    ip_network::IpNetwork::new_truncate(prefix.network(), prefix.prefix()).ok()
}
