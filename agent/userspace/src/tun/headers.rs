//! Where things stand in the headers: virtio's (include/uapi/linux/virtio_net.h), IPv4's (RFC 791), IPv6's (RFC 8200),
//! TCP's (RFC 9293), UDP's (RFC 768).

/// Bytes of virtio's header.
pub(super) const VIRTIO: usize = 10;
/// Bytes of IPv4's header without options.
pub(super) const IPV4: usize = 20;
/// Bytes of IPv6's header.
pub(super) const IPV6: usize = 40;
/// Bytes of UDP's header.
pub(super) const UDP: usize = 8;

pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

/// Where the checksum stands in TCP's header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Where the checksum stands in UDP's header.
pub(super) const UDP_CHECKSUM: usize = 6;
/// Where the flags stand in TCP's header.
pub(super) const TCP_FLAGS: usize = 13;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// What the kernel says of a packet, and we to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Virtio {
    /// The checksum is the pseudo-header's alone, to be completed.
    pub(super) needs_checksum: bool,
    pub(super) segments: Segments,
    pub(super) header_length: u16,
    pub(super) segment_size: u16,
    pub(super) checksum_start: u16,
    pub(super) checksum_offset: u16,
}

/// What a packet is to be cut into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Segments {
    #[default]
    None,
    Tcp4,
    Tcp6,
    Udp,
}

impl Virtio {
    /// The header and what follows it. None where there is none, or one of a kind that was not asked for.
    pub(super) fn decode(raw: &[u8]) -> Option<(Self, &[u8])> {
        let ([flags, kind, a, b, c, d, e, f, g, h], packet) = raw.split_first_chunk::<VIRTIO>()?;
        // 0x80: with ECN, which the cutting heeds in any case.
        let segments = match kind & !0x80 {
            0 => Segments::None,
            1 => Segments::Tcp4,
            4 => Segments::Tcp6,
            5 => Segments::Udp,
            _ => return None,
        };
        let header = Self {
            needs_checksum: flags & 1 != 0,
            segments,
            header_length: u16::from_ne_bytes([*a, *b]),
            segment_size: u16::from_ne_bytes([*c, *d]),
            checksum_start: u16::from_ne_bytes([*e, *f]),
            checksum_offset: u16::from_ne_bytes([*g, *h]),
        };
        Some((header, packet))
    }

    pub(super) fn encode(self) -> [u8; VIRTIO] {
        let kind = match self.segments {
            Segments::None => 0,
            Segments::Tcp4 => 1,
            Segments::Tcp6 => 4,
            Segments::Udp => 5,
        };
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.segment_size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [u8::from(self.needs_checksum), kind, a, b, c, d, e, f, g, h]
    }
}

/// Both addresses of an IP packet, as they stand there.
pub(super) fn addresses(packet: &[u8], is_v6: bool) -> Option<&[u8]> {
    if is_v6 { packet.get(8..IPV6) } else { packet.get(12..IPV4) }
}

/// Two bytes in network order.
pub(super) fn read16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

/// Four bytes in network order.
pub(super) fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// Puts `value` at `at`, where there is room.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}
