//! Packets to the kernel: those of one flow that follow each other go in one write (GRO).
//!
//! Nothing is copied: a write is the headers of the first packet, mended, and the payloads where they lie. A packet's own
//! checksum is not verified, as the kernel's WireGuard does not (drivers/net/wireguard/receive.c): the tag has shown
//! that it came as it was sent.

use std::io::IoSlice;

use gotatun::packet::Packet;
use rustix::io::Errno;

use self::segment::Segment;
use super::{
    Tun, checksum,
    headers::{
        IPV4, IPV6, PSH, Segments, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, VIRTIO, Virtio, addresses, put,
    },
};

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod segment;
#[cfg(test)]
mod tests;

/// How many of the last trains are tried for a packet: so many flows may come interleaved.
const WINDOW: usize = 16;

/// Most datagrams of one train: the kernel's own limit (UDP_GRO_CNT_MAX, net/ipv4/udp_offload.c).
const MAX_DATAGRAMS: usize = 64;

/// Joins and writes. What it holds is used again.
#[derive(Default)]
pub(crate) struct Joiner {
    trains: Vec<Train>,
    /// For each packet, the one that follows it in its train.
    next: Vec<Option<usize>>,
}

/// Packets that go in one write.
struct Train {
    first: usize,
    last: usize,
    count: usize,
    /// Bytes of all, with one packet's headers.
    length: usize,
    /// The first packet as a part of a flow; None where it is not of a kind that has flows.
    segment: Option<Segment>,
    /// What follows has to begin at this sequence number.
    sequence: u32,
    /// Whether anything may follow.
    is_open: bool,
    /// Whether the last one has PSH.
    has_push: bool,
}

impl Joiner {
    /// Writes `packets`, all of them IP, in an order that keeps each flow's. Err: the link is gone; what the kernel refuses
    /// otherwise is lost.
    pub(crate) fn write(&mut self, tun: &Tun, packets: &[Packet]) -> Result<(), Errno> {
        self.plan(packets, tun.joins_datagrams());
        for train in &self.trains {
            match self.write_train(tun, train, packets) {
                Ok(()) => {}
                Err(Errno::BADFD) => return Err(Errno::BADFD),
                // IO: the link is down (tun_chr_write_iter). INVAL: the kernel does not take this packet.
                Err(error) => tracing::debug!(%error, "packets to the TUN link dropped"),
            }
        }
        Ok(())
    }

    fn plan(&mut self, packets: &[Packet], joins_datagrams: bool) {
        self.trains.clear();
        self.next.clear();
        self.next.resize(packets.len(), None);
        for (index, packet) in packets.iter().enumerate() {
            let segment = Segment::of(packet, joins_datagrams);
            if let Some(segment) = &segment
                && let Some(train) = find(&mut self.trains, segment, packet, packets)
            {
                let first: &[u8] = packets.get(train.first).map_or(&[], |packet| packet);
                if train.takes(first, segment, packet) {
                    train.append(segment);
                    if let Some(next) = self.next.get_mut(train.last) {
                        *next = Some(index);
                    }
                    train.last = index;
                    continue;
                }
                // Nothing of the flow may pass this one.
                train.is_open = false;
            }
            self.trains.push(Train::new(index, packet.len(), segment));
        }
    }

    fn write_train(&self, tun: &Tun, train: &Train, packets: &[Packet]) -> Result<(), Errno> {
        let first = packets.get(train.first).ok_or(Errno::INVAL)?;
        let Some(segment) = train.segment.as_ref().filter(|_| train.count > 1) else {
            return tun.write(&[IoSlice::new(&[0; VIRTIO]), IoSlice::new(first)]);
        };
        // The largest headers: IPv6 and TCP with all options.
        let mut headers = [0; VIRTIO + IPV6 + 60];
        let headers = train.headers(segment, first, &mut headers).ok_or(Errno::INVAL)?;
        let mut pieces = Vec::with_capacity(1 + train.count);
        pieces.push(IoSlice::new(headers));
        let mut index = Some(train.first);
        while let Some(packet) = index.and_then(|index| packets.get(index)) {
            pieces.push(IoSlice::new(packet.get(segment.payload..).unwrap_or_default()));
            index = index.and_then(|index| self.next.get(index).copied().flatten());
        }
        tun.write(&pieces)
    }
}

/// The last train of the flow that `segment` belongs to.
fn find<'a>(
    trains: &'a mut [Train],
    segment: &Segment,
    packet: &[u8],
    packets: &[Packet],
) -> Option<&'a mut Train> {
    trains.iter_mut().rev().take(WINDOW).find(|train| {
        let of = train.segment.as_ref().zip(packets.get(train.first));
        of.is_some_and(|(other, first)| segment.is_of_flow(packet, other, first))
    })
}

impl Train {
    fn new(index: usize, length: usize, segment: Option<Segment>) -> Self {
        let has_push = segment.as_ref().is_some_and(|segment| segment.has_push);
        Self {
            first: index,
            last: index,
            count: 1,
            length,
            sequence: segment.as_ref().map_or(0, Segment::end),
            is_open: segment.as_ref().is_some_and(|segment| segment.joins) && !has_push,
            segment,
            has_push,
        }
    }

    /// Whether `packet` can follow, so that the kernel, which cuts to the first one's size, would cut it the same.
    fn takes(&self, first: &[u8], segment: &Segment, packet: &[u8]) -> bool {
        let Some(head) = self.segment.as_ref().filter(|_| self.is_open && segment.joins) else {
            return false;
        };
        let in_order = !segment.is_tcp || segment.sequence == self.sequence;
        in_order
            && segment.length <= head.length
            && self.length + segment.length <= usize::from(u16::MAX)
            && (segment.is_tcp || self.count < MAX_DATAGRAMS)
            && segment.has_headers_of(packet, head, first)
    }

    fn append(&mut self, segment: &Segment) {
        self.count += 1;
        self.length += segment.length;
        self.sequence = segment.end();
        self.has_push = segment.has_push;
        // Only the last one may be shorter, or have PSH.
        let full = self.segment.as_ref().is_some_and(|head| head.length == segment.length);
        self.is_open = full && !segment.has_push;
    }

    /// Virtio's header and those of the whole train, in `room`.
    fn headers<'a>(&self, segment: &Segment, first: &[u8], room: &'a mut [u8]) -> Option<&'a [u8]> {
        let room = room.get_mut(..VIRTIO + segment.payload)?;
        let (virtio, packet) = room.split_at_mut_checked(VIRTIO)?;
        packet.copy_from_slice(first.get(..segment.payload)?);
        let (is_v6, transport) = (segment.is_v6, segment.transport);
        let length = u16::try_from(self.length).ok()?;
        let body = u16::try_from(self.length - transport).ok()?;
        if is_v6 {
            put(packet, 4, body.to_be_bytes())?;
        } else {
            put(packet, 2, length.to_be_bytes())?;
            put(packet, 10, [0, 0])?;
            let sum = checksum::add(0, packet.get(..IPV4)?);
            put(packet, 10, checksum::finish(sum))?;
        }
        let sum = checksum::pseudo_header(addresses(packet, is_v6)?, segment.protocol(), body);
        let checksum_at = if segment.is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        put(packet, transport + checksum_at, checksum::fold(sum))?;
        if segment.is_tcp {
            let flags = packet.get_mut(transport + TCP_FLAGS)?;
            *flags |= if self.has_push { PSH } else { 0 };
        } else {
            put(packet, transport + 4, body.to_be_bytes())?;
        }
        let header = Virtio {
            needs_checksum: true,
            segments: match (segment.is_tcp, is_v6) {
                (true, false) => Segments::Tcp4,
                (true, true) => Segments::Tcp6,
                (false, _) => Segments::Udp,
            },
            header_length: u16::try_from(segment.payload).ok()?,
            segment_size: u16::try_from(segment.length).ok()?,
            checksum_start: u16::try_from(transport).ok()?,
            checksum_offset: u16::try_from(checksum_at).ok()?,
        };
        virtio.copy_from_slice(&header.encode());
        Some(room)
    }
}
