//! The floor: what the kernel and a device themselves take for the same routes and peers. Routes go in netlink
//! datagrams of 500, the last of each acknowledged; peers in one UAPI message; dumps are read and not looked at.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use wg_overlay_mesh::{DEVICE, ROUTE_PROTOCOL};

use crate::nodes::MadeUp;

const BATCH: usize = 500;

/// A netlink socket of the network namespace that it was opened in.
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Puts routes to the prefixes through a link.
    pub fn set_routes(&mut self, nets: &[IpNet], link: u32) -> Result<()> {
        for batch in nets.chunks(BATCH) {
            let mut datagram = Vec::with_capacity(batch.len() * 80);
            for (at, net) in batch.iter().enumerate() {
                let ack = if at + 1 == batch.len() { NLM_F_ACK } else { 0 };
                let message = RouteNetlinkMessage::NewRoute(route(net, link));
                append(&mut datagram, message, NLM_F_CREATE | NLM_F_REPLACE | ack);
            }
            self.socket.send(&datagram, 0)?;
            self.until_answered()?;
        }
        Ok(())
    }

    /// Reads links, addresses and the routes of both families.
    pub fn dump(&mut self) -> Result<()> {
        let routes = |family| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            RouteNetlinkMessage::GetRoute(message)
        };
        for request in [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            routes(AddressFamily::Inet),
            routes(AddressFamily::Inet6),
        ] {
            let mut datagram = Vec::new();
            append(&mut datagram, request, NLM_F_DUMP);
            self.socket.send(&datagram, 0)?;
            self.until_answered()?;
        }
        Ok(())
    }

    /// Whether there is a route to exactly this prefix: one request, one answer.
    pub fn has_route(&mut self, net: &IpNet) -> Result<bool> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(net);
        message.header.destination_prefix_length = net.max_prefix_len();
        message.attributes.push(RouteAttribute::Destination(net.network().into()));
        // The route itself, not what a lookup makes of it (RTM_F_FIB_MATCH, include/uapi/linux/rtnetlink.h).
        message.header.flags = netlink_packet_route::route::RouteFlags::FibMatch;
        let mut datagram = Vec::new();
        append(&mut datagram, RouteNetlinkMessage::GetRoute(message), 0);
        self.socket.send(&datagram, 0)?;
        self.receive()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer)?;
        Ok(match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(found)) => {
                found.header.destination_prefix_length == net.prefix_len()
            }
            _ => false,
        })
    }

    fn receive(&mut self) -> Result<()> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        Ok(())
    }

    /// Up to the acknowledgement or the end of a dump, which stands in the last message of its datagram.
    fn until_answered(&mut self) -> Result<()> {
        loop {
            self.receive()?;
            let mut rest = self.buffer.as_slice();
            while let Some((header, _)) = rest.split_first_chunk::<16>() {
                let [l0, l1, l2, l3, k0, k1, ..] = *header;
                let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
                match u16::from_ne_bytes([k0, k1]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code =
                            rest.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
                        ensure!(code == Some(0), "the kernel refused: {code:?}");
                        return Ok(());
                    }
                    _ => rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default(),
                }
            }
        }
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

fn append(datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    if let Some(room) = datagram.get_mut(start..) {
        message.serialize(room);
    }
}

fn family(net: &IpNet) -> AddressFamily {
    if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route(net: &IpNet, link: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(net);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = if net.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.destination_prefix_length = net.prefix_len();
    message.attributes.push(RouteAttribute::Destination(net.network().into()));
    message.attributes.push(RouteAttribute::Oif(link));
    message
}

/// The nodes as peers in WireGuard's cross-platform text (wireguard.com/xplatform), in place of all others.
pub fn peers_text(nodes: impl Iterator<Item = MadeUp>) -> String {
    let mut text = "set=1\nreplace_peers=true\n".to_owned();
    for node in nodes {
        let [v4, v6] = node.pod_cidrs();
        let key = hex(&node.key_bytes());
        let _ = write!(text, "public_key={key}\nendpoint={}:51820\n", node.address());
        let _ = write!(text, "replace_allowed_ips=true\nallowed_ip={v4}\nallowed_ip={v6}\n");
    }
    text + "\n"
}

/// Sends one message to the device and gives its whole answer.
pub fn uapi(text: &str) -> Result<String> {
    let path = format!("/var/run/wireguard/{DEVICE}.sock");
    let mut socket = UnixStream::connect(&path).with_context(|| format!("connect to {path}"))?;
    socket.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = vec![0; 256 * 1024];
    while !answer.ends_with(b"\n\n") {
        match socket.read(&mut part)? {
            0 => bail!("the device broke off"),
            length => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    let answer = String::from_utf8(answer)?;
    ensure!(answer.contains("errno=0\n"), "the device refused: {}", answer.trim());
    Ok(answer)
}

/// Lower-case hexadecimal, as UAPI has keys.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
