//! The UDP side of the tunnel: one socket for both families, sends in trains of segments.
//!
//! Receiving (recvmmsg and UDP_GRO) is gotatun's. Sending is ours: consecutive packets of one size
//! to one endpoint go to the kernel in one call (UDP_SEGMENT, udp(7)), and one endpoint that
//! cannot be reached does not take the packets of the others with it.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use gotatun::{
    packet::Packet,
    udp::{
        UdpSend, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{UdpSocket, UdpSocketFactory},
    },
};
use rustix::net::sockopt;

mod train;

/// Wanted size of both socket buffers, in bytes: wireguard-go's (conn/controlfns.go).
const SOCKET_BUFFER: usize = 7 << 20;

/// Makes the sockets of the tunnel.
#[derive(Default)]
pub(crate) struct GsoSocketFactory {
    inner: UdpSocketFactory,
}

impl UdpTransportFactory for GsoSocketFactory {
    type Send = GsoSender;
    type Recv = UdpSocket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(GsoSender, UdpSocket)> {
        let (sender, receiver) = self.inner.bind(params).await?;
        tune(&sender);
        let sender = GsoSender { socket: sender, segments: Arc::new(AtomicBool::new(true)) };
        Ok((sender, receiver))
    }
}

/// Sends WireGuard messages, in trains where the kernel takes them.
#[derive(Clone)]
pub(crate) struct GsoSender {
    socket: UdpSocket,
    /// Whether the kernel takes UDP_SEGMENT on this socket.
    segments: Arc<AtomicBool>,
}

impl UdpSend for GsoSender {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        2 * train::MAX_SEGMENTS
    }

    async fn send_many_to(&self, (): &mut (), packets: &mut Vec<(Packet, SocketAddr)>) -> io::Result<()> {
        let mut rest = packets.as_slice();
        while !rest.is_empty() {
            let (train, after) = rest.split_at(train::length(rest));
            rest = after;
            if let Err(error) = self.send_train(train).await {
                tracing::trace!(%error, "datagrams not sent");
            }
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.socket.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        UdpSend::set_fwmark(&self.socket, mark)
    }
}

impl GsoSender {
    /// Sends a train in one call, or packet by packet where that is not possible.
    async fn send_train(&self, train: &[(Packet, SocketAddr)]) -> io::Result<()> {
        if train.len() > 1 && self.segments.load(Ordering::Relaxed) {
            match train::send(&self.socket, train).await {
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
        for (packet, destination) in train {
            if let Err(error) = self.socket.socket().send_to(packet, destination).await {
                result = Err(error);
            }
        }
        result
    }
}

/// Whether `port` can be bound, on the sockets that the tunnel would use.
pub(crate) fn probe(port: u16) -> io::Result<()> {
    StdUdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).map(drop)
}

/// Options that a tunnel works without, only worse; a refusal is no error.
fn tune(socket: &UdpSocket) {
    let refused = |option: &str, error: rustix::io::Errno| {
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
}
