//! TCP segments of no connection, written byte by byte.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

use crate::netns::{Netns, Receiver};

pub const RST: u8 = 0x04;
pub const SYN_ACK: u8 = 0x12;

/// A raw socket that sees every TCP segment that arrives in its namespace.
pub struct RawTcp(OwnedFd);

impl RawTcp {
    pub fn new(netns: &Netns, v4: bool) -> Self {
        let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        Self(netns.run(|| socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Tcp).unwrap()))
    }

    /// Sends a segment with these flags; the source address must be the one that the route gives.
    pub fn send(&self, from: IpAddr, to: IpAddr, flags: u8) {
        let segment = segment(from, to, flags);
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        match sendto(self.0.as_raw_fd(), &segment, &to, MsgFlags::empty()) {
            // A packet that is dropped on the way out of its own namespace is an error of the call.
            Ok(_) | Err(Errno::EPERM) => {}
            Err(e) => panic!("{}", io::Error::from(e)),
        }
    }
}

impl Receiver for RawTcp {
    fn source(&self, patience: Duration) -> Option<SocketAddr> {
        let micros = i64::try_from(patience.as_micros()).unwrap();
        let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        setsockopt(&self.0, ReceiveTimeout, &timeout).unwrap();
        loop {
            match recvfrom::<SockaddrStorage>(self.0.as_raw_fd(), &mut [0; 128]) {
                Ok((_, from)) => return from.and_then(|from| address(&from)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Err(e) => panic!("{}", io::Error::from(e)),
            }
        }
    }
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), 0)));
    v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), 0))))
}

/// A TCP header from port 8080 to 40000 (RFC 9293, section 3.1), without data.
fn segment(from: IpAddr, to: IpAddr, flags: u8) -> Vec<u8> {
    let mut header = [&8080_u16.to_be_bytes()[..], &40000_u16.to_be_bytes(), &1_u32.to_be_bytes()].concat();
    header.extend(1_u32.to_be_bytes());
    header.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    let mut pseudo = [octets(from), octets(to), vec![0, 6, 0, 20]].concat();
    pseudo.extend(&header);
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}
