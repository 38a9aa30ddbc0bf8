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
    while !shared.is_stopped() {
        // The lock ends before the sleep.
        let carried = shared.outbound.lock().carry(shared, wake, usize::MAX);
        match carried {
            Ok(()) => wake.wait(&shared.tun, PollFlags::IN),
            // The link is gone (drivers/net/tun.c, tun_chr_read_iter).
            Err(Errno::BADFD) => return,
            Err(error) => {
                tracing::debug!(%error, "reading from the TUN link failed");
                wake.pause();
            }
        }
    }
}

/// What reads the TUN link and sends to the underlay. One thread has it at a time, so that packets keep their order: the
/// thread of this direction, or the other one before it sleeps, to send at once what answers a packet it has brought.
pub(super) struct Outbound {
    raw: Vec<u8>,
    cutter: Cutter,
    packets: Vec<Packet>,
    batch: Batch,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self {
            raw: vec![0; READ_SIZE],
            cutter: Cutter::default(),
            packets: Vec::new(),
            batch: Batch::default(),
        }
    }

    /// Reads until nothing waits, or so many times, and sends what was read.
    pub(super) fn carry(&mut self, shared: &Shared, wake: &Wake, times: usize) -> Result<(), Errno> {
        // How many more reads before the next send. One after a sleep: what comes alone goes at once.
        let mut reads = 1;
        let mut left = times;
        let mut result = Ok(());
        while left > 0 && !shared.is_stopped() {
            match shared.tun.read(&mut self.raw) {
                Ok(length) => self.seal(shared, length),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            left -= 1;
            reads -= 1;
            if self.batch.is_full() || reads == 0 {
                reads = BATCH_READS;
                self.batch.send(shared, wake);
            }
        }
        self.batch.send(shared, wake);
        result
    }

    fn seal(&mut self, shared: &Shared, length: usize) {
        let mtu = usize::from(*shared.mtu.borrow());
        if self.cutter.cut(self.raw.get(..length).unwrap_or_default(), mtu, &mut self.packets).is_none() {
            tracing::debug!(length, "packet from the TUN link not understood, dropped");
        }
        self.packets.drain(..).for_each(|packet| self.batch.seal(shared, packet));
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
