//! A packet as a part of a flow of TCP or UDP.

use crate::tun::headers::{
    ACK, IPV4, IPV6, PROTOCOL_TCP, PROTOCOL_UDP, PSH, TCP_CHECKSUM, TCP_FLAGS, UDP, UDP_CHECKSUM, addresses,
    read16, read32,
};

/// What of a packet decides where it may be joined.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) is_v6: bool,
    pub(super) is_tcp: bool,
    /// Where TCP or UDP begins.
    pub(super) transport: usize,
    /// Where the payload begins.
    pub(super) payload: usize,
    /// Bytes of payload.
    pub(super) length: usize,
    /// TCP's, of the first byte.
    pub(super) sequence: u32,
    pub(super) has_push: bool,
    /// Whether it may be joined at all; if not, it only has its place among the flow's packets.
    pub(super) joins: bool,
}

impl Segment {
    /// None where it is not TCP or UDP, or in a form that is never joined: fragments, IPv4's options, IPv6's extensions.
    pub(super) fn of(packet: &[u8], joins_datagrams: bool) -> Option<Self> {
        let (is_v6, transport, protocol, length) = match packet.first()? {
            0x45 => {
                // Its offset and "more fragments" (RFC 791, 3.1).
                if read16(packet, 6)? & 0x3fff != 0 {
                    return None;
                }
                (false, IPV4, *packet.get(9)?, usize::from(read16(packet, 2)?))
            }
            0x60..=0x6f => (true, IPV6, *packet.get(6)?, IPV6 + usize::from(read16(packet, 4)?)),
            _ => return None,
        };
        if length != packet.len() {
            return None;
        }
        let body = packet.get(transport..)?;
        match protocol {
            PROTOCOL_TCP => {
                let header = usize::from(body.get(12)? >> 4) * 4;
                let payload = body.len().checked_sub(header).filter(|_| header >= 20)?;
                let flags = *body.get(TCP_FLAGS)?;
                Some(Self {
                    is_v6,
                    is_tcp: true,
                    transport,
                    payload: transport + header,
                    length: payload,
                    sequence: read32(body, 4)?,
                    has_push: flags & PSH != 0,
                    joins: payload > 0 && flags & !PSH == ACK,
                })
            }
            PROTOCOL_UDP => {
                let payload = body.len().checked_sub(UDP)?;
                // Without a checksum it has to stay without.
                let has_checksum = read16(body, UDP_CHECKSUM)? != 0;
                let whole = usize::from(read16(body, 4)?) == body.len();
                Some(Self {
                    is_v6,
                    is_tcp: false,
                    transport,
                    payload: transport + UDP,
                    length: payload,
                    sequence: 0,
                    has_push: false,
                    joins: joins_datagrams && payload > 0 && has_checksum && whole,
                })
            }
            _ => None,
        }
    }

    /// The sequence number after it.
    pub(super) fn end(&self) -> u32 {
        self.sequence.wrapping_add(u32::try_from(self.length).unwrap_or(0))
    }

    pub(super) fn protocol(&self) -> u8 {
        if self.is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP }
    }

    /// Same addresses, protocol and ports.
    pub(super) fn is_of_flow(&self, packet: &[u8], other: &Self, first: &[u8]) -> bool {
        let ports = self.transport..self.transport + 4;
        (self.is_v6, self.is_tcp) == (other.is_v6, other.is_tcp)
            && addresses(packet, self.is_v6) == addresses(first, self.is_v6)
            && packet.get(ports.clone()) == first.get(ports)
    }

    /// Whether the headers are those of the flow's `first`, but for what differs from packet to packet: lengths, IPv4's
    /// number and checksums, TCP's sequence and PSH.
    pub(super) fn has_headers_of(&self, packet: &[u8], other: &Self, first: &[u8]) -> bool {
        let same = |from: usize, to: usize| packet.get(from..to) == first.get(from..to);
        let ip = if self.is_v6 { same(0, 4) && same(6, 8) } else { same(0, 2) && same(6, 10) };
        if !self.is_tcp {
            return ip;
        }
        let at = |offset: usize| self.transport + offset;
        ip && self.payload == other.payload
            && same(at(8), at(TCP_FLAGS))
            && same(at(TCP_FLAGS + 1), at(TCP_CHECKSUM))
            && same(at(TCP_CHECKSUM + 2), self.payload)
    }
}
