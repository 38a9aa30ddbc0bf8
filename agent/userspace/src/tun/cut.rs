//! Packets from the kernel: one read gives up to 64 KiB of one flow, cut here as the kernel would (GSO).

use bytes::BytesMut;
use gotatun::packet::Packet;

use super::{
    checksum,
    headers::{
        CWR, FIN, IPV6, PROTOCOL_TCP, PROTOCOL_UDP, PSH, Segments, TCP_CHECKSUM, TCP_FLAGS, UDP,
        UDP_CHECKSUM, Virtio, addresses, put, read16, read32,
    },
};

/// Cuts, into packets that share one buffer; it is used again once they are gone.
#[derive(Default)]
pub(crate) struct Cutter {
    buffer: BytesMut,
}

/// Where the headers of a packet end that is to be cut.
struct Layout {
    is_v6: bool,
    /// Where TCP or UDP begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
}

impl Cutter {
    /// Cuts what one read gave, `raw`, and adds the packets to `packets`, each padded to a multiple of 16 bytes but not
    /// beyond `mtu` (white paper, 5.4.6). None: not understood, nothing is added.
    pub(crate) fn cut(&mut self, raw: &[u8], mtu: usize, packets: &mut Vec<Packet>) -> Option<()> {
        let (header, packet) = Virtio::decode(raw)?;
        if header.segments == Segments::None {
            self.buffer.reserve(padded(packet.len(), mtu));
            self.buffer.extend_from_slice(packet);
            if header.needs_checksum {
                complete(&mut self.buffer, &header).or_else(|| {
                    self.buffer.clear();
                    None
                })?;
            }
            packets.push(self.take(mtu));
            return Some(());
        }
        let layout = Layout::of(&header, packet)?;
        let size = usize::from(header.segment_size);
        let (headers, payload) = packet.split_at_checked(layout.payload)?;
        if size == 0 || u16::try_from(headers.len() + size.min(payload.len())).is_err() {
            return None;
        }
        let count = payload.len().div_ceil(size);
        self.buffer.reserve(count * padded(headers.len() + size, mtu));
        for (number, segment) in payload.chunks(size).enumerate() {
            self.buffer.extend_from_slice(headers);
            self.buffer.extend_from_slice(segment);
            let place = Place { number, offset: number * size, is_last: number + 1 == count };
            // The layout was checked: all that is put has its room.
            finish(&mut self.buffer, &layout, &header, place);
            packets.push(self.take(mtu));
        }
        Some(())
    }

    /// What the buffer begins with, padded, as a packet.
    fn take(&mut self, mtu: usize) -> Packet {
        let length = padded(self.buffer.len(), mtu);
        self.buffer.resize(length, 0);
        Packet::from_bytes(self.buffer.split())
    }
}

fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu).max(length)
}

/// Completes the checksum of a packet that is not cut.
fn complete(packet: &mut [u8], header: &Virtio) -> Option<()> {
    let start = usize::from(header.checksum_start);
    let offset = usize::from(header.checksum_offset);
    // The pseudo-header's sum stands in the field already.
    let sum = checksum::add(0, packet.get(start..)?);
    let checksum = if offset == UDP_CHECKSUM { checksum::finish_udp(sum) } else { checksum::finish(sum) };
    put(packet, start + offset, checksum)
}

impl Layout {
    /// `header_length` is not to be trusted: on the way of forwarded packets the kernel puts the whole first segment there.
    fn of(header: &Virtio, packet: &[u8]) -> Option<Self> {
        let transport = usize::from(header.checksum_start);
        let is_v6 = packet.first()? >> 4 == 6;
        let (agrees, length, checksum) = match header.segments {
            Segments::None => return None,
            Segments::Tcp4 | Segments::Tcp6 => {
                let length = usize::from(packet.get(transport + 12)? >> 4) * 4;
                (is_v6 == (header.segments == Segments::Tcp6) && length >= 20, length, TCP_CHECKSUM)
            }
            Segments::Udp => (true, UDP, UDP_CHECKSUM),
        };
        let least = if is_v6 { IPV6 } else { usize::from(packet.first()? & 0xf) * 4 };
        let fits = transport >= least.max(20) && transport + length <= packet.len();
        (agrees && fits && usize::from(header.checksum_offset) == checksum).then_some(Self {
            is_v6,
            transport,
            payload: transport + length,
        })
    }
}

/// Which segment it is.
struct Place {
    number: usize,
    /// Where its payload begins in that of all, in bytes.
    offset: usize,
    is_last: bool,
}

/// Makes a packet of its own of the common headers and a segment, as net/ipv4/tcp_offload.c and udp_offload.c do.
fn finish(packet: &mut [u8], layout: &Layout, header: &Virtio, place: Place) -> Option<()> {
    let length = u16::try_from(packet.len()).ok()?;
    let transport = u16::try_from(packet.len() - layout.transport).ok()?;
    if layout.is_v6 {
        put(packet, 4, u16::try_from(packet.len() - IPV6).ok()?.to_be_bytes())?;
    } else {
        let number = read16(packet, 4)?.wrapping_add(u16::try_from(place.number).ok()?);
        put(packet, 2, length.to_be_bytes())?;
        put(packet, 4, number.to_be_bytes())?;
        put(packet, 10, [0, 0])?;
        let sum = checksum::add(0, packet.get(..layout.transport)?);
        put(packet, 10, checksum::finish(sum))?;
    }
    let is_udp = header.segments == Segments::Udp;
    let protocol = if is_udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
    let pseudo = checksum::pseudo_header(addresses(packet, layout.is_v6)?, protocol, transport);
    let body = packet.get_mut(layout.transport..)?;
    if is_udp {
        put(body, 4, transport.to_be_bytes())?;
        put(body, UDP_CHECKSUM, [0, 0])?;
        let sum = checksum::add(pseudo, body);
        return put(body, UDP_CHECKSUM, checksum::finish_udp(sum));
    }
    let sequence = read32(body, 4)?.wrapping_add(u32::try_from(place.offset).ok()?);
    put(body, 4, sequence.to_be_bytes())?;
    let flags = body.get_mut(TCP_FLAGS)?;
    if place.number > 0 {
        *flags &= !CWR;
    }
    if !place.is_last {
        *flags &= !(FIN | PSH);
    }
    put(body, TCP_CHECKSUM, [0, 0])?;
    let sum = checksum::add(pseudo, body);
    put(body, TCP_CHECKSUM, checksum::finish(sum))
}

#[cfg(test)]
mod tests;
