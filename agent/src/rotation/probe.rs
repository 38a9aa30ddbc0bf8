//! Whether a node's packets come by one device and no other: its kernel answers a connection to its overlay address by
//! the device that its own route to this node leads to.

use std::{io, net::SocketAddr, time::Duration};

use futures::future::join_all;
use ipnet::IpNet;
use tokio::{net::TcpSocket, time::timeout};
use wg_overlay_mesh::{Link, PublicKey, first_host};

/// An answer takes as long as the way there and back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gives the key where an answer from within each of these prefixes came by the device.
pub(super) async fn answers(key: PublicKey, device: Link, nets: Vec<IpNet>, port: u16) -> Option<PublicKey> {
    let asked = nets.iter().map(|net| answer(device, net, port));
    join_all(asked).await.into_iter().all(|answered| answered).then_some(key)
}

/// Connects to the overlay address in a prefix, by one device: an answer that comes by another does not belong to this
/// socket (SO_BINDTODEVICE, socket(7)). That nobody listens is an answer too.
async fn answer(device: Link, net: &IpNet, port: u16) -> bool {
    let ip = first_host(net).unwrap_or(net.addr());
    let connect = async {
        let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind_device(Some(device.name().as_bytes()))?;
        socket.connect(SocketAddr::new(ip, port)).await.map(drop)
    };
    match timeout(PATIENCE, connect).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}
