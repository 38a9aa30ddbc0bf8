//! From the TUN link to the underlay: read, cut, seal, send.

use std::{net::IpAddr, os::fd::AsFd as _, sync::Arc};

use gotatun::packet::{Ip, Packet};
use rustix::{event::PollFlags, io::Errno};

use super::{Shared, peers::Peer, wake::Wake};
use crate::{
    tun::{Cutter, READ_SIZE},
    udp::Outgoing,
};

/// Packets that are sealed before they are sent: one train of the underlay.
const BATCH_PACKETS: usize = 64;

/// Bytes that are sealed before they are sent: one train of the underlay.
const BATCH_BYTES: usize = 60_000;

/// What reads the TUN link and sends to the underlay. One thread has it at a time, so that packets keep their order.
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

    /// Reads until nothing waits, a batch is full, or so many times, and sends what was sealed. Says whether more may wait.
    ///
    /// # Errors
    /// BADFD where the link is gone (drivers/net/tun.c, tun_chr_read_iter); others may pass.
    pub(super) fn turn(&mut self, shared: &Shared, bell: &Wake, reads: usize) -> Result<bool, Errno> {
        let mut result = Ok(true);
        for _ in 0..reads {
            match shared.tun.read(&mut self.raw) {
                Ok(length) => self.seal(shared, length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    result = Ok(false);
                    break;
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            if self.batch.is_full() {
                break;
            }
        }
        self.batch.send(shared, bell);
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

    fn send(&mut self, shared: &Shared, bell: &Wake) {
        // What a batch knows of the peers may be over by the next.
        self.way = None;
        if self.datagrams.is_empty() {
            return;
        }
        let underlay = shared.underlay();
        underlay.send_all(&self.datagrams, || {
            if !shared.is_stopped() {
                // Who carries both directions is late for the other meanwhile, and is not to be so again.
                shared.threads.call_relief();
                bell.wait(&[(underlay.as_fd(), PollFlags::OUT)]);
            }
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
