//! What comes: one call gives a datagram, or a train of them from one sender (UDP_GRO).

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd,
};

use bytes::BytesMut;
use gotatun::packet::Packet;
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
};

use super::Underlay;

/// The largest train: net/ipv4/udp.c gives no more than IP's length field can say.
const MAX_TRAIN: usize = u16::MAX as usize;

/// Receives, into packets that share one buffer; it is used again once they are gone.
pub(crate) struct Receiver {
    raw: Vec<u8>,
    control: Vec<u8>,
    buffer: BytesMut,
}

/// Datagrams of one sender, as they came.
pub(crate) struct Train<'a> {
    /// Whose they are; an IPv4 address is one, whatever the socket's family.
    pub(crate) from: SocketAddr,
    buffer: &'a mut BytesMut,
    size: usize,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self { raw: vec![0; MAX_TRAIN], control: cmsg_space!(i32), buffer: BytesMut::new() }
    }

    /// One call. `WouldBlock` where nothing waits.
    pub(crate) fn receive(&mut self, underlay: &Underlay) -> io::Result<Train<'_>> {
        let (length, from, size) = {
            let mut slices = [IoSliceMut::new(&mut self.raw)];
            let fd = underlay.socket.as_raw_fd();
            let control = Some(self.control.as_mut_slice());
            let message = recvmsg::<SockaddrStorage>(fd, &mut slices, control, MsgFlags::MSG_DONTWAIT)?;
            let size = message.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::UdpGroSegments(size) => {
                    usize::try_from(size).ok().filter(|size| *size > 0)
                }
                _ => None,
            });
            (message.bytes, message.address.as_ref().and_then(sender), size)
        };
        let from = from.ok_or(io::ErrorKind::InvalidData)?;
        // What nobody took of the train before.
        self.buffer.clear();
        self.buffer.extend_from_slice(self.raw.get(..length).unwrap_or_default());
        Ok(Train { from, size: size.unwrap_or(length), buffer: &mut self.buffer })
    }
}

impl Iterator for Train<'_> {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        let length = self.size.min(self.buffer.len());
        (length > 0).then(|| Packet::from_bytes(self.buffer.split_to(length)))
    }
}

fn sender(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
    let address = v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)))?;
    // An IPv4 address keeps no scope; a link-local one of IPv6 must.
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => Some(SocketAddr::new(ip, address.port())),
        _ => Some(address),
    }
}
