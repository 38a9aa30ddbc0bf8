//! From the underlay to the TUN link: receive, open, join, write.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use gotatun::{
    noise::{TunnResult, handshake::parse_handshake_anon},
    packet::{Packet, WgKind},
    tun::MtuWatcher,
    x25519::PublicKey,
};
use rustix::io::Errno;

use super::{Shared, identity::Identity, peers::Peer};
use crate::{
    tun::Joiner,
    udp::{Outgoing, Receiver, Underlay},
};

/// Bytes that are opened before they are written: one train of the TUN link.
const BATCH_BYTES: usize = 60_000;

/// What receives from the underlay and writes to the TUN link.
pub(super) struct Inbound {
    receiver: Receiver,
    joiner: Joiner,
    batch: Batch,
}

/// What a turn came to.
pub(super) struct Received {
    /// Whether more may wait.
    pub(super) more: bool,
    /// Whether the link was given packets.
    pub(super) written: bool,
    /// Whether receiving failed.
    pub(super) failed: bool,
}

impl Inbound {
    pub(super) fn new(shared: &Shared) -> Self {
        Self { receiver: Receiver::new(), joiner: Joiner::default(), batch: Batch::new(shared) }
    }

    /// Receives until nothing waits, a batch is full, or so many times, and writes what was opened.
    ///
    /// # Errors
    /// The link's: it is gone.
    pub(super) fn turn(&mut self, shared: &Shared, calls: usize) -> Result<Received, Errno> {
        let underlay = shared.underlay();
        let identity = shared.identity();
        let (mut more, mut failed) = (true, false);
        for _ in 0..calls {
            match self.receiver.receive(&underlay) {
                Ok(train) => {
                    let from = train.from;
                    train.for_each(|datagram| self.batch.open(shared, &identity, &underlay, datagram, from));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    more = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "receiving from the underlay failed");
                        failed = true;
                    }
                    break;
                }
            }
            if self.batch.bytes >= BATCH_BYTES {
                break;
            }
        }
        let written = !self.batch.packets.is_empty();
        self.batch.write(shared, &mut self.joiner)?;
        Ok(Received { more, written, failed })
    }
}

/// Opened packets that wait to be written.
struct Batch {
    packets: Vec<Packet>,
    bytes: usize,
    mtu: MtuWatcher,
    /// The last index and whose it is: the datagrams of one train mostly have the same.
    way: Option<(u32, Arc<Peer>)>,
    /// The last source that was found to be the peer's.
    source: Option<IpAddr>,
}

impl Batch {
    fn new(shared: &Shared) -> Self {
        let mtu = MtuWatcher::from(shared.mtu.clone());
        Self { packets: Vec::new(), bytes: 0, mtu, way: None, source: None }
    }

    /// Takes one datagram in: a packet waits to be written, an answer is sent.
    fn open(
        &mut self,
        shared: &Shared,
        identity: &Identity,
        underlay: &Underlay,
        datagram: Packet,
        from: SocketAddr,
    ) {
        let message = match identity.limiter.verify_packet(from, datagram) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => return underlay.send(&Packet::from(cookie), from),
            Err(_) => return,
        };
        let Some(peer) = self.sender(shared, identity, &message) else { return };
        let session = match &message {
            WgKind::HandshakeResp(response) => Some(response.receiver_idx.get()),
            WgKind::Data(data) => Some(data.header.receiver_idx.get()),
            WgKind::HandshakeInit(_) | WgKind::CookieReply(_) => None,
        };
        let mut state = peer.state.lock();
        let outcome = state.tunnel.handle_incoming_packet(message);
        if let (TunnResult::WriteToNetwork(_) | TunnResult::WriteToTunnel(_), Some(index)) =
            (&outcome, session)
        {
            state.confirm(index);
        }
        match outcome {
            // A cookie says nothing of where the peer is.
            TunnResult::Done | TunnResult::Err(_) => {}
            TunnResult::WriteToNetwork(answer) => {
                state.endpoint = Some(from);
                // With the session there, what waited for it can go.
                let waiting: Vec<_> = state.tunnel.get_queued_packets(&mut self.mtu).collect();
                let answers = std::iter::once(answer).chain(waiting);
                let answers: Vec<Outgoing> = answers
                    .map(|answer| {
                        shared.peers.register(&answer, &state, &peer);
                        (answer.into(), from)
                    })
                    .collect();
                drop(state);
                underlay.send_all(&answers, || false);
            }
            TunnResult::WriteToTunnel(packet) => {
                state.endpoint = Some(from);
                drop(state);
                self.take(shared, &peer, packet);
            }
        }
    }

    fn sender(&mut self, shared: &Shared, identity: &Identity, message: &WgKind) -> Option<Arc<Peer>> {
        let index = match message {
            WgKind::HandshakeInit(init) => {
                let half = parse_handshake_anon(&identity.private, &identity.public, init).ok()?;
                return shared.peers.get(&PublicKey::from(half.peer_static_public));
            }
            WgKind::HandshakeResp(response) => response.receiver_idx.get(),
            WgKind::CookieReply(reply) => reply.receiver_idx.get(),
            WgKind::Data(data) => data.header.receiver_idx.get(),
        };
        if self.way.as_ref().is_none_or(|(last, _)| *last != index) {
            self.source = None;
            self.way = shared.peers.of_index(index).map(|peer| (index, peer));
        }
        self.way.as_ref().map(|(_, peer)| Arc::clone(peer))
    }

    /// Keeps a packet whose source is the sender's to use. A keepalive is none.
    fn take(&mut self, shared: &Shared, sender: &Arc<Peer>, packet: Packet) {
        if packet.is_empty() {
            return;
        }
        let Ok(packet) = packet.try_into_ipvx() else { return };
        let (source, packet): (IpAddr, Packet) = packet.either(
            |packet| (packet.header.source().into(), packet.into()),
            |packet| (packet.header.source().into(), packet.into()),
        );
        if self.source != Some(source) {
            let holder = shared.peers.of_address(source);
            if holder.is_none_or(|holder| !Arc::ptr_eq(&holder, sender)) {
                tracing::trace!("packet from an address that is not its sender's, dropped");
                return;
            }
            self.source = Some(source);
        }
        self.bytes += packet.len();
        self.packets.push(packet);
    }

    fn write(&mut self, shared: &Shared, joiner: &mut Joiner) -> Result<(), Errno> {
        let written = joiner.write(&shared.tun, &self.packets);
        self.packets.clear();
        self.bytes = 0;
        // What a batch knows of the peers may be over by the next.
        self.way = None;
        self.source = None;
        written
    }
}
