//! One rtnetlink socket: requests of several messages in one datagram, and the few things read back.
//!
//! Blocking: the kernel answers such a request within the send. Links are read attribute by attribute, so that a kind of
//! link which the packet crate can't parse does not hide the others.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator, Parseable,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkHeader, LinkMessage},
    route::RouteMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use thiserror::Error;

/// A request that the kernel did not take, or an answer that could not be read.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// What was tried failed.
    #[error("could not {0}")]
    Io(String, #[source] io::Error),
    /// The answer is not rtnetlink's.
    #[error("could not read the kernel's answer to: {0}")]
    Decode(String, #[source] DecodeError),
}

impl NetlinkError {
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io(_, source) => Errno::from_io_error(source),
            Self::Decode(..) => None,
        }
    }
}

/// A message, its flags beside REQUEST and ACK, and what it tries, in words that follow "could not".
pub(crate) struct Request {
    pub(crate) what: String,
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

/// What is read of a link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) controller: Option<u32>,
    /// Of a veth: its peer's index, and the ID that the peer's network namespace has here.
    pub(crate) peer: (u32, Option<i32>),
    /// Of a bridge's port: whether it forwards.
    pub(crate) forwards: bool,
    pub(crate) settings: Settings,
}

/// What is under /proc/sys/net/ipv4/conf and ipv6/conf for a link; `None` where it has nothing of that family.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    pub(crate) ipv4_accept_redirects: Option<u32>,
    pub(crate) disable_ipv6: Option<u32>,
    pub(crate) accept_ra: Option<u32>,
    pub(crate) accept_redirects: Option<u32>,
}

#[derive(Debug)]
pub(crate) enum Reply {
    Link(Link),
    Address(AddressMessage),
    Route(RouteMessage),
    Other,
}

/// A socket that stays in the network namespace in which it was opened.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A dump's datagrams are made to fit it (`max_recvmsg_len` of net/netlink/af_netlink.c), and one link, asked for without its
/// virtual functions, takes a tenth of it.
const DATAGRAM: usize = 16 * 1024;

impl Netlink {
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Io("open a netlink socket".to_owned(), source);
        let socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        // gives it a port as well; from anybody but the kernel nothing is taken then
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends all requests in one datagram. The kernel carries each of them out; the first that failed is the error.
    pub(crate) fn request(&mut self, requests: Vec<Request>) -> Result<Vec<Reply>, NetlinkError> {
        let first = self.sequence + 1;
        let mut datagram = Vec::new();
        let mut tries = Vec::with_capacity(requests.len());
        for request in requests {
            self.sequence += 1;
            let mut message = NetlinkMessage::from(request.message);
            message.header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let begin = datagram.len();
            datagram.resize(begin + message.buffer_len(), 0);
            if let Some(space) = datagram.get_mut(begin..) {
                message.serialize(space);
            }
            tries.push(request.what);
        }
        let what = |sequence: u32| {
            tries.get(sequence.saturating_sub(first) as usize).cloned().unwrap_or_else(|| tries.join(", "))
        };
        self.socket.send(&datagram, 0).map_err(|source| NetlinkError::Io(what(0), source))?;

        let mut replies = Vec::new();
        let mut failure = None;
        let mut pending = tries.len();
        while pending > 0 {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0).map_err(|source| NetlinkError::Io(what(0), source))?;
            for message in messages(&self.buffer) {
                let message = message.map_err(|source| NetlinkError::Decode(what(0), source))?;
                let sequence = message.header.sequence_number;
                if sequence < first {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(reply) => replies.push(reply),
                    NetlinkPayload::Error(answer) => {
                        pending -= 1;
                        if let Some(code) = answer.code {
                            let source = io::Error::from_raw_os_error(code.get().saturating_neg());
                            failure.get_or_insert(NetlinkError::Io(what(sequence), source));
                        }
                    }
                    NetlinkPayload::Done(_) => pending -= 1,
                    _ => {}
                }
            }
        }
        failure.map_or(Ok(replies), Err)
    }

    /// The link of this name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        let request = Request {
            what: format!("look for the link {name}"),
            message: RouteNetlinkMessage::GetLink(message),
            flags: 0,
        };
        match self.request(vec![request]) {
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
            other => Ok(links(other?).next()),
        }
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        self.dump("list the links", RouteNetlinkMessage::GetLink(message))
            .map(|replies| links(replies).collect())
    }

    pub(crate) fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<Reply>, NetlinkError> {
        self.request(vec![Request { what: what.to_owned(), message, flags: NLM_F_DUMP }])
    }

    /// Removes a link, and with a veth its peer. One that is gone already is no error.
    pub(crate) fn delete_link(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let request = Request {
            what: format!("delete the link {}", link.name),
            message: RouteNetlinkMessage::DelLink(message),
            flags: 0,
        };
        match self.request(vec![request]) {
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// What a datagram of the kernel says, up to the first message that can't be read.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<NetlinkMessage<Reply>, DecodeError>> {
    let mut rest = Some(datagram).filter(|rest| !rest.is_empty());
    std::iter::from_fn(move || {
        let message = rest.take()?;
        Some(NetlinkBuffer::new_checked(message).map(|buffer| buffer.length() as usize).and_then(|length| {
            rest = message.get(length.next_multiple_of(4)..).filter(|rest| !rest.is_empty());
            NetlinkMessage::deserialize(message).inspect_err(|_| rest = None)
        }))
    })
}

/// Down to IFLA_BRPORT_STATE: IFLA_LINKINFO holds IFLA_INFO_SLAVE_DATA, that the state (linux/if_link.h).
fn port_forwards(link_info: &[u8]) -> bool {
    const SLAVE_DATA: u16 = 5;
    const STATE: u16 = 1;
    const FORWARDING: u8 = 3; // BR_STATE_FORWARDING, linux/if_bridge.h
    let mut info = NlasIterator::new(link_info).flatten();
    info.find(|attribute| attribute.kind() == SLAVE_DATA).is_some_and(|data| {
        let mut port = NlasIterator::new(data.value()).flatten();
        port.any(|attribute| attribute.kind() == STATE && attribute.value() == [FORWARDING])
    })
}

impl Settings {
    /// From IFLA_AF_SPEC, which has for each family an array of numbers (linux/ip.h and linux/ipv6.h tell their order).
    fn parse(af_spec: &[u8]) -> Self {
        const INET: (u16, u16) = (2, 1); // AF_INET, IFLA_INET_CONF
        const INET6: (u16, u16) = (10, 2); // AF_INET6, IFLA_INET6_CONF
        let mut settings = Self::default();
        for family in NlasIterator::new(af_spec).flatten() {
            for conf in NlasIterator::new(family.value()).flatten() {
                let number =
                    |at: usize| conf.value().get(at * 4..)?.first_chunk().copied().map(u32::from_ne_bytes);
                match (family.kind(), conf.kind()) {
                    INET => settings.ipv4_accept_redirects = number(3),
                    INET6 => {
                        settings.accept_ra = number(3);
                        settings.accept_redirects = number(4);
                        settings.disable_ipv6 = number(26);
                    }
                    _ => {}
                }
            }
        }
        settings
    }
}

pub(crate) fn links(replies: Vec<Reply>) -> impl Iterator<Item = Link> {
    replies.into_iter().filter_map(|reply| match reply {
        Reply::Link(link) => Some(link),
        _ => None,
    })
}

impl NetlinkDeserializable for Reply {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        // RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE of linux/rtnetlink.h.
        match header.message_type {
            16 => Link::parse(payload).map(Self::Link),
            20 => AddressMessage::parse(payload).map(Self::Address),
            24 => Ok(RouteMessage::parse(payload).map_or(Self::Other, Self::Route)),
            _ => Ok(Self::Other),
        }
    }
}

impl Link {
    fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        // struct ifinfomsg and IFLA_* of linux/if_link.h.
        const HEADER: usize = 16;
        let header = LinkHeader::parse(payload)?;
        let mut link = Self { index: header.index, up: header.flags.bits() & 1 == 1, ..Self::default() };
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            let text = || String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            let number = || value.try_into().map(u32::from_ne_bytes).ok();
            match attribute.kind() {
                1 => link.mac = value.to_vec(),
                3 => link.name = text(),
                4 => link.mtu = number().unwrap_or_default(),
                5 => link.peer.0 = number().unwrap_or_default(),
                10 => link.controller = number(),
                18 => link.forwards = port_forwards(value),
                20 => link.alias = Some(text()),
                26 => link.settings = Settings::parse(value),
                37 => link.peer.1 = value.try_into().map(i32::from_ne_bytes).ok(),
                _ => {}
            }
        }
        Ok(link)
    }
}
