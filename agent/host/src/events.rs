//! What others change in the kernel, as it happens.
//!
//! Owns two netlink sockets and a memory of links, by which it tells a change that matters from the many that do not:
//! pods coming and going, a link's counters, an address that is confirmed, and our own requests. WireGuard peers and
//! legacy iptables raise no events.

pub(crate) mod links;

use std::{collections::BTreeSet, io, time::Duration};

use netlink_packet_core::NlasIterator;
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rustix::io::Errno;
use wg_overlay_mesh::TABLE;

use self::links::KnownLinks;
use crate::netlink::{Message, split};

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Our links, addresses or routes, or those of the underlay.
    Network,
    /// Our nftables tables.
    Firewall,
    /// Another nftables table, in which a chain of the host may be.
    HostChains,
}

/// The ports of the sockets that our own changes go by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnPorts {
    pub(crate) route: u32,
    pub(crate) nftables: u32,
}

/// A subscription to changes.
pub struct Events {
    own: OwnPorts,
    route: TokioSocket,
    nftables: TokioSocket,
    links: KnownLinks,
    pending: BTreeSet<Change>,
    /// What was read last, of routes and of nftables: two buffers, made once.
    heard: [Vec<u8>; 2],
}

impl Events {
    pub(crate) fn open(own: OwnPorts) -> io::Result<Self> {
        let (route, nftables) =
            (subscribe(NETLINK_ROUTE, ROUTE_GROUPS)?, subscribe(NETLINK_NETFILTER, NFTABLES)?);
        Ok(Self {
            own,
            route,
            nftables,
            links: KnownLinks::read()?,
            pending: BTreeSet::new(),
            heard: [buffer(), buffer()],
        })
    }

    /// Waits for the next change. Several of one kind that are there at once are one. May be dropped at any time
    /// without losing a change. A socket that fails is opened again, and then everything may have changed.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.pending.pop_first() {
                return change;
            }
            let Self { route, nftables, heard: [of_route, of_nftables], .. } = self;
            of_route.clear();
            of_nftables.clear();
            let answer = tokio::select! {
                answer = route.recv(of_route) => answer,
                answer = nftables.recv(of_nftables) => answer,
            };
            if let Err(error) = answer.and_then(|()| self.read()) {
                self.recover(&error).await;
            }
        }
    }

    /// Reads what was heard and what is there already, so that a burst is one change.
    fn read(&mut self) -> io::Result<()> {
        let [mut route, mut nftables] = std::mem::take(&mut self.heard);
        let read = loop {
            self.read_route(&route);
            self.read_nftables(&nftables);
            let more = refill(&self.route, &mut route).and(refill(&self.nftables, &mut nftables));
            if more.is_err() || (route.is_empty() && nftables.is_empty()) {
                break more;
            }
        };
        self.heard = [route, nftables];
        read
    }

    /// ENOBUFS says that events were lost; the socket is as good as before.
    async fn recover(&mut self, error: &io::Error) {
        let lost = Errno::from_io_error(error) == Some(Errno::NOBUFS);
        tracing::debug!(%error, lost, "events of the kernel were missed: everything is read again");
        loop {
            let again = if lost { KnownLinks::read().map(|links| self.links = links) } else { self.reopen() };
            match again {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot subscribe to the kernel's events; trying again in 1 s")
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.pending.extend([Change::Network, Change::Firewall, Change::HostChains]);
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(self.own)?;
        Ok(())
    }

    fn read_route(&mut self, datagram: &[u8]) {
        for message in split(datagram) {
            let own = message.port_number() == self.own.route;
            if self.links.heard(message, own) {
                self.pending.insert(Change::Network);
            }
        }
    }

    fn read_nftables(&mut self, datagram: &[u8]) {
        let others = split(datagram).filter(|message| message.port_number() != self.own.nftables);
        self.pending.extend(others.filter_map(nftables_change));
    }
}

/// Links, addresses and routes: `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`
/// (include/uapi/linux/rtnetlink.h).
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// Group 7, `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = 1 << 6;
/// The kernel's events are of one page or less, a batch of a link with many virtual functions apart.
const BUFFER: usize = 64 * 1024;
/// Room for a burst, such as the routes of a link that goes down; without the capability the default stays.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

fn subscribe(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket.socket_ref(), RECEIVE_BUFFER);
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

fn buffer() -> Vec<u8> {
    Vec::with_capacity(BUFFER)
}

/// The next datagram if there is one, else nothing.
fn refill(socket: &TokioSocket, datagram: &mut Vec<u8>) -> io::Result<()> {
    datagram.clear();
    match socket.socket_ref().recv(datagram, 0) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// `NFT_MSG_NEWGEN`, which closes each transaction and names no table (include/uapi/linux/netfilter/nf_tables.h). The
/// upper byte of a type is the subsystem.
const NEW_GENERATION: u16 = 15;
/// `NFT_MSG_NEWSETELEM`.
const NEW_ELEMENTS: u16 = 12;
/// The family of an nfnetlink message is its payload's first byte (include/uapi/linux/netfilter.h).
const NFPROTO_BRIDGE: u8 = 7;

/// What an nftables event means to us.
pub(crate) fn nftables_change(message: Message<'_>) -> Option<Change> {
    let kind = message.message_type() & 0xff;
    // A pod that is attached adds elements to the table on the bridge's ports.
    let attached = kind == NEW_ELEMENTS && message.payload().first() == Some(&NFPROTO_BRIDGE);
    if kind == NEW_GENERATION || attached {
        return None;
    }
    match table(message.payload())? {
        TABLE => Some(Change::Firewall),
        // kube-proxy rewrites its own table all the time, and no packet of ours is dropped in it.
        "kube-proxy" => None,
        _ => Some(Change::HostChains),
    }
}

/// The table that an nftables event is about: in every other message attribute 1.
fn table(payload: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(attribute(payload, 1)?).ok()?;
    Some(name.trim_end_matches('\0'))
}

/// An attribute of an nfnetlink message, after its header of 4 bytes.
pub(crate) fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    nested(payload.get(4..)?, wanted)
}

/// An attribute among others.
pub(crate) fn nested(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
    let found = attributes.find(|attribute| attribute.kind() == wanted)?;
    let length = usize::from(found.length());
    found.into_inner().get(4..length)
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("pending", &self.pending).finish_non_exhaustive()
    }
}
