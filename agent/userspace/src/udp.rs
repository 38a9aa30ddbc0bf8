//! The UDP side of the tunnel: one socket for both families, sends in trains of segments.
//!
//! Receiving (recvmmsg and UDP_GRO) is gotatun's. Sending is ours: consecutive packets of one size
//! to one endpoint go to the kernel in one call (UDP_SEGMENT, udp(7)), and one endpoint that
//! cannot be reached does not take the packets of the others with it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{
        UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{UdpSocket, UdpSocketFactory},
    },
};
use rustix::net::sockopt;

mod train;

/// Wanted size of both socket buffers, in bytes: wireguard-go's (conn/controlfns.go).
const SOCKET_BUFFER: usize = 7 << 20;

/// Makes the sockets of the tunnel, and keeps the last one: the engine asks anew at each change of
/// its key, port or mark, before its old tasks have closed their socket, and would find its own
/// port in use. A port that cannot be had leaves the old socket at hand.
#[derive(Default)]
pub(crate) struct GsoSocketFactory {
    inner: UdpSocketFactory,
    last: Option<UdpSocket>,
}

impl UdpTransportFactory for GsoSocketFactory {
    type Send = GsoSender;
    type Recv = Receiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(GsoSender, Receiver)> {
        let socket = match self.last.clone().filter(|last| is_bound_to(last, params.port)) {
            Some(socket) => {
                UdpSend::set_fwmark(&socket, params.fwmark.unwrap_or(0))?;
                socket
            }
            None => {
                let (socket, _) = self.inner.bind(params).await?;
                tune(&socket);
                socket
            }
        };
        self.last = Some(socket.clone());
        let segments = Arc::new(AtomicBool::new(true));
        Ok((GsoSender { socket: socket.clone(), segments }, Receiver(socket)))
    }
}

fn is_bound_to(socket: &UdpSocket, port: u16) -> bool {
    socket.local_addr().is_ok_and(|address| address.port() == port)
}

/// Receives WireGuard messages. The engine gives a socket up at its first error, for good; here an
/// error loses what it loses and no more.
pub(crate) struct Receiver(UdpSocket);

/// How long to wait after a failed receive, so that one that stays does not take a core.
const PAUSE: Duration = Duration::from_millis(100);

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            match self.0.recv_from(pool).await {
                Ok(received) => return Ok(received),
                Err(error) => pause(error).await,
            }
        }
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        while let Err(error) = self.0.recv_many_from(buffer, pool, packets).await {
            pause(error).await;
        }
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.0.enable_udp_gro()
    }
}

async fn pause(error: io::Error) {
    tracing::warn!(%error, "receiving from the underlay failed");
    tokio::time::sleep(PAUSE).await;
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
