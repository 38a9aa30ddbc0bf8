//! From the TUN link to the underlay, on a thread of its own: read, cut, seal, send.

use std::{net::IpAddr, sync::Arc};

use gotatun::packet::{Ip, Packet};
use rustix::{event::PollFlags, io::Errno};

use super::{Shared, peers::Peer, wake::Wake};
use crate::{
    recycle::Recycler,
    tun::{Cutter, READ_SIZE},
    udp::Outgoing,
};

/// Packets that are sealed before they are sent: one train of the underlay.
const BATCH_PACKETS: usize = 64;

/// Bytes that are sealed before they are sent: one train of the underlay.
const BATCH_BYTES: usize = 60_000;

/// Reads before what was sealed is sent, whatever came: packets to nobody must not hold the others back.
const BATCH_READS: usize = 64;

/// Carries packets until the device ends or the link is gone.
pub(super) fn run(shared: &Shared, wake: &Wake) {
    let _recycler = Recycler::new();
    let mut raw = vec![0; READ_SIZE];
    let mut cutter = Cutter::default();
    let mut packets = Vec::new();
    let mut batch = Batch::default();
    // How many more reads before the next send. One after a sleep: what comes alone goes at once.
    let mut reads = 1;
    while !shared.is_stopped() {
        match shared.tun.read(&mut raw) {
            Ok(length) => {
                let mtu = usize::from(*shared.mtu.borrow());
                if cutter.cut(raw.get(..length).unwrap_or_default(), mtu, &mut packets).is_none() {
                    tracing::debug!(length, "packet from the TUN link not understood, dropped");
                }
                packets.drain(..).for_each(|packet| batch.seal(shared, packet));
                reads -= 1;
                if batch.is_full() || reads == 0 {
                    reads = BATCH_READS;
                    batch.send(shared, wake);
                }
            }
            Err(Errno::AGAIN) => {
                reads = 1;
                batch.send(shared, wake);
                wake.wait(&shared.tun, PollFlags::IN);
            }
            Err(Errno::INTR) => {}
            // The link is gone (drivers/net/tun.c, tun_chr_read_iter).
            Err(Errno::BADFD) => return,
            Err(error) => {
                tracing::debug!(%error, "reading from the TUN link failed");
                wake.pause();
            }
        }
    }
}

/// Sealed packets that wait to be sent.
#[derive(Default)]
struct Batch {
    datagrams: Vec<Outgoing>,
    bytes: usize,
    /// The last destination and whose it is: the packets of one read all have the same.
    way: Option<(IpAddr, Arc<Peer>)>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.datagrams.len() >= BATCH_PACKETS || self.bytes >= BATCH_BYTES
    }

    /// Seals `packet` for the peer that holds its destination. Without a session it waits there, and a handshake begins.
    fn seal(&mut self, shared: &Shared, packet: Packet) {
        let Some((packet, destination)) = destination(packet) else { return };
        if self.way.as_ref().is_none_or(|(address, _)| *address != destination) {
            self.way = shared.peers.of_address(destination).map(|peer| (destination, peer));
        }
        let Some((_, peer)) = &self.way else { return };
        let mut state = peer.state.lock();
        let Some(endpoint) = state.endpoint else { return };
        // It is padded already.
        let Some(message) = state.tunnel.handle_outgoing_packet(packet, None) else { return };
        shared.peers.register(&message, &state, peer);
        drop(state);
        let datagram = Packet::from(message);
        self.bytes += datagram.len();
        self.datagrams.push((datagram, endpoint));
    }

    fn send(&mut self, shared: &Shared, wake: &Wake) {
        // What a batch knows of the peers may be over by the next.
        self.way = None;
        if self.datagrams.is_empty() {
            return;
        }
        let underlay = shared.underlay();
        underlay.send_all(&self.datagrams, || {
            wake.wait(&*underlay, PollFlags::OUT);
            !shared.is_stopped()
        });
        self.datagrams.clear();
        self.bytes = 0;
    }
}

fn destination(packet: Packet) -> Option<(Packet, IpAddr)> {
    let packet: Packet<Ip> = packet.try_into_ip().ok()?;
    let destination = packet.destination()?;
    Some((packet.into(), destination))
}
