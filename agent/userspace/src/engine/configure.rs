//! What the configuration may change of a device that runs, and read of it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use gotatun::{
    noise::Tunn,
    x25519::{PublicKey, StaticSecret},
};
use ipnetwork::IpNetwork;

use super::{Engine, identity::Identity, peers::Peer};
use crate::udp::Underlay;

/// What there is to know of a peer, beside its allowed IPs.
pub(crate) struct PeerStatus {
    pub(crate) key: PublicKey,
    pub(crate) preshared_key: Option<[u8; 32]>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Seconds.
    pub(crate) keepalive: Option<u16>,
    /// How long ago.
    pub(crate) last_handshake: Option<Duration>,
    pub(crate) received: usize,
    pub(crate) sent: usize,
}

/// What to change of a peer.
#[derive(Default)]
pub(crate) struct PeerChange {
    pub(crate) endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub(crate) keepalive: Option<u16>,
    pub(crate) preshared_key: Option<Option<[u8; 32]>>,
}

impl Engine {
    /// The key that was set.
    pub(crate) fn private_key(&self) -> Option<StaticSecret> {
        let identity = self.shared.identity();
        identity.is_set.then(|| identity.private.clone())
    }

    /// Sets the key, or has none. With another one all sessions are over.
    pub(crate) fn set_private_key(&self, key: Option<StaticSecret>) -> io::Result<()> {
        let identity = key.map_or_else(Identity::nobodys, |key| Ok(Identity::of(key)))?;
        if identity.public == self.shared.identity().public {
            return Ok(());
        }
        let identity = Arc::new(identity);
        *self.shared.identity.write() = Arc::clone(&identity);
        for peer in self.shared.peers.all() {
            let limiter = Arc::clone(&identity.limiter);
            let mut state = peer.state.lock();
            state.tunnel.set_static_private(identity.private.clone(), identity.public, limiter);
        }
        Ok(())
    }

    /// The port of the underlay.
    pub(crate) fn listen_port(&self) -> io::Result<u16> {
        self.shared.underlay().port()
    }

    /// Moves to `port`; 0 is any. One that cannot be had leaves the old one.
    pub(crate) fn set_listen_port(&self, port: u16) -> io::Result<()> {
        if port == self.listen_port()? {
            return Ok(());
        }
        let underlay = Underlay::bind(port, self.mark())?;
        *self.shared.underlay.write() = Arc::new(underlay);
        self.ring();
        Ok(())
    }

    /// The mark of what is sent; 0 is none.
    pub(crate) fn mark(&self) -> u32 {
        *self.mark.lock()
    }

    /// Marks what is sent; 0 takes the mark away.
    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.shared.underlay().set_mark(mark)?;
        *self.mark.lock() = mark;
        Ok(())
    }

    /// Takes all peers away.
    pub(crate) fn clear_peers(&self) {
        self.shared.peers.clear();
    }

    /// Takes a peer away, and the prefixes that it `held`.
    pub(crate) fn remove_peer(&self, key: &PublicKey, held: impl IntoIterator<Item = IpNetwork>) {
        self.set_allowed_ips(key, held, []);
        self.shared.peers.remove(key);
    }

    /// Changes a peer, which is new where it is not known. Its session and counters stay.
    pub(crate) fn set_peer(&self, key: PublicKey, change: PeerChange) {
        let peer = self.shared.peers.get(&key).unwrap_or_else(|| self.add_peer(key));
        let mut state = peer.state.lock();
        if let Some(endpoint) = change.endpoint {
            state.endpoint = Some(endpoint);
        }
        if let Some(seconds) = change.keepalive {
            state.tunnel.set_persistent_keepalive(Some(seconds));
        }
        if let Some(preshared_key) = change.preshared_key {
            state.tunnel.set_preshared_key(preshared_key);
        }
    }

    fn add_peer(&self, key: PublicKey) -> Arc<Peer> {
        let identity = self.shared.identity();
        let indices = self.shared.peers.indices.clone();
        let limiter = Arc::clone(&identity.limiter);
        let peer = Peer::new(key, Tunn::new(identity.private.clone(), key, None, None, indices, limiter));
        self.shared.peers.insert(Arc::clone(&peer));
        peer
    }

    /// Has the peer hold the prefixes of `gained`, whoever held them, and not those of `lost`.
    pub(crate) fn set_allowed_ips(
        &self,
        key: &PublicKey,
        lost: impl IntoIterator<Item = IpNetwork>,
        gained: impl IntoIterator<Item = IpNetwork>,
    ) {
        lost.into_iter().for_each(|prefix| self.shared.peers.unroute(prefix));
        if let Some(peer) = self.shared.peers.get(key) {
            gained.into_iter().for_each(|prefix| self.shared.peers.route(prefix, &peer));
        }
    }

    /// All peers, in the order of their keys.
    pub(crate) fn peers(&self) -> Vec<PeerStatus> {
        let mut peers: Vec<_> = self.shared.peers.all().iter().map(|peer| peer.status()).collect();
        peers.sort_unstable_by_key(|peer| peer.key.to_bytes());
        peers
    }
}

impl Peer {
    fn status(&self) -> PeerStatus {
        let state = self.state.lock();
        let (_, sent, received, ..) = state.tunnel.stats();
        PeerStatus {
            key: self.key,
            preshared_key: state.tunnel.preshared_key(),
            endpoint: state.endpoint,
            keepalive: state.tunnel.persistent_keepalive(),
            last_handshake: state.last_handshake(),
            received,
            sent,
        }
    }
}
