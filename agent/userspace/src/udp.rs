//! The UDP side of the tunnel: one socket for both families, used without waiting.
//!
//! Datagrams go in trains: consecutive ones of one size to one endpoint in one call (UDP_SEGMENT,
//! udp(7)), and come so, too (UDP_GRO). One endpoint that cannot be reached does not take the
//! packets of the others with it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use gotatun::packet::Packet;
use nix::sys::socket::{setsockopt, sockopt::Mark};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt},
};

pub(crate) use receive::Receiver;

mod receive;
mod train;

/// Wanted size of both socket buffers, in bytes: wireguard-go's (conn/controlfns.go).
const SOCKET_BUFFER: usize = 7 << 20;

/// A datagram and where it goes.
pub(crate) type Outgoing = (Packet, SocketAddr);

/// The tunnel's socket.
pub(crate) struct Underlay {
    socket: UdpSocket,
    /// Whether the kernel takes UDP_SEGMENT on this socket.
    segments: AtomicBool,
}

impl Underlay {
    /// Binds `port` of both families, or of IPv4 where there is no IPv6; 0 is any.
    pub(crate) fn bind(port: u16, mark: u32) -> io::Result<Self> {
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let socket = match open(v6, mark) {
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
                open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), mark)?
            }
            other => other?,
        };
        tune(&socket);
        Ok(Self { socket, segments: AtomicBool::new(true) })
    }

    /// The port it is bound to.
    pub(crate) fn port(&self) -> io::Result<u16> {
        self.socket.local_addr().map(|address| address.port())
    }

    /// Sets the mark of what is sent; 0 is none.
    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        Ok(setsockopt(&self.socket, Mark, &mark)?)
    }

    /// Sends one datagram, or loses it.
    pub(crate) fn send(&self, packet: &[u8], to: SocketAddr) {
        if let Err(error) = self.socket.send_to(packet, to) {
            tracing::trace!(%error, "datagram not sent");
        }
    }

    /// Sends all, in order. `wait` is called where the socket is full, and says whether to go on.
    pub(crate) fn send_all(&self, packets: &[Outgoing], mut wait: impl FnMut() -> bool) {
        let mut rest = packets;
        while !rest.is_empty() {
            let (train, after) = rest.split_at(train::length(rest));
            rest = after;
            if let Err(error) = self.send_train(train, &mut wait) {
                tracing::trace!(%error, "datagrams not sent");
            }
        }
    }

    /// Sends a train in one call, or packet by packet where that is not possible.
    fn send_train(&self, train: &[Outgoing], wait: &mut impl FnMut() -> bool) -> io::Result<()> {
        if train.len() > 1 && self.segments.load(Ordering::Relaxed) {
            match retry(wait, || train::send(self.socket.as_fd(), train)) {
                Ok(()) => return Ok(()),
                Err(error) => match train::refusal(&error) {
                    None => return Err(error),
                    Some(train::Refusal::ThisTrain) => {}
                    Some(train::Refusal::AllTrains) => {
                        tracing::debug!(%error, "UDP_SEGMENT not possible, plain sends from here on");
                        self.segments.store(false, Ordering::Relaxed);
                    }
                },
            }
        }
        let mut result = Ok(());
        for (packet, to) in train {
            if let Err(error) = retry(wait, || self.socket.send_to(packet, to).map(drop)) {
                result = Err(error);
            }
        }
        result
    }
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends again once there is room.
fn retry(wait: &mut impl FnMut() -> bool, mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && wait() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn open(address: SocketAddr, mark: u32) -> Result<UdpSocket, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    if mark != 0 {
        setsockopt(&socket, Mark, &mark).map_err(|error| Errno::from_raw_os_error(error as i32))?;
    }
    bind(&socket, &address)?;
    Ok(UdpSocket::from(socket))
}

/// Options that a tunnel works without, only worse; a refusal is no error.
fn tune(socket: &UdpSocket) {
    let refused = |option: &str, error: Errno| {
        tracing::debug!(option, %error, "socket option refused");
    };
    // The outer packet may be cut on a path smaller than ours (no DF): the overlay's own MTU
    // keeps that rare, and a black hole is worse. On a v6 socket both families have the option.
    if let Err(error) = sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DONT) {
        refused("IP_MTU_DISCOVER", error);
    }
    if let Err(error) = sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DONT) {
        refused("IPV6_MTU_DISCOVER", error);
    }
    if let Err(error) = sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER) {
        refused("SO_RCVBUFFORCE", error);
    }
    if let Err(error) = sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER) {
        refused("SO_SNDBUFFORCE", error);
    }
    if let Err(error) = setsockopt(socket, nix::sys::socket::sockopt::UdpGroSegment, &true) {
        tracing::debug!(option = "UDP_GRO", %error, "socket option refused");
    }
}
