//! From the underlay to the TUN link, on a thread of its own: receive, open, join, write.

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
use rustix::{event::PollFlags, io::Errno};

use super::{Shared, identity::Identity, peers::Peer, wake::Wake};
use crate::{
    recycle::Recycler,
    tun::Joiner,
    udp::{Outgoing, Receiver, Underlay},
};

/// Bytes that are opened before they are written: one train of the TUN link.
const BATCH_BYTES: usize = 60_000;

/// Calls before what was opened is written, whatever came: noise must not hold packets back.
const BATCH_CALLS: usize = 64;

/// Carries packets until the device ends or the link is gone.
pub(super) fn run(shared: &Shared, wake: &Wake) {
    let _recycler = Recycler::new();
    let mut receiver = Receiver::new();
    let mut joiner = Joiner::default();
    let mut batch = Batch::new(shared);
    let mut underlay = shared.underlay();
    // How many more calls before the next write. One after a sleep: what comes alone goes at once.
    let mut calls = 1;
    // Whether packets were written since the last sleep.
    let mut written = false;
    while !shared.is_stopped() {
        match receiver.receive(&underlay) {
            Ok(train) => {
                let identity = shared.identity();
                let from = train.from;
                train.for_each(|datagram| batch.open(shared, &identity, &underlay, datagram, from));
                calls -= 1;
                if batch.bytes < BATCH_BYTES && calls > 0 {
                    continue;
                }
                calls = BATCH_CALLS;
                written |= !batch.packets.is_empty();
                if batch.write(shared, &mut joiner).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                written |= !batch.packets.is_empty();
                if batch.write(shared, &mut joiner).is_err() {
                    return;
                }
                // This node's own answer waits already; until the other thread is awake takes longer than to send it.
                if std::mem::take(&mut written)
                    && let Some(mut outbound) = shared.outbound.try_lock()
                {
                    // The other thread finds the same error.
                    let _ = outbound.carry(shared, wake, 1);
                }
                wake.wait(&*underlay, PollFlags::IN);
                calls = 1;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "receiving from the underlay failed");
                wake.pause();
            }
        }
        // There may be another one.
        underlay = shared.underlay();
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
