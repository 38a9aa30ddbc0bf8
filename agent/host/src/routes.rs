//! Routes of the main table: reading them, and the netlink requests that change ours.
//!
//! Ours carry protocol 87. Two kinds of them may share a prefix: into the tunnel, and unreachable below it.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};
use wg_overlay_mesh::{DesiredRoute, ROUTE_PROTOCOL, UNREACHABLE_METRIC};

use crate::netlink::{Request, dump};

/// IPv6 routes have this metric where none is asked for (`IP6_RT_PRIO_USER`, include/uapi/linux/ipv6_route.h). It is
/// always written, since a removal without it may hit an unreachable route of the same prefix.
const IPV6_METRIC: u32 = 1024;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRoute {
    pub(crate) destination: IpNet,
    pub(crate) kind: RouteType,
    pub(crate) protocol: RouteProtocol,
    /// The link it leaves by; of several the first. `None` for an unreachable one.
    pub(crate) link: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) metric: u32,
}

impl FoundRoute {
    /// Whether it carries our protocol number.
    pub(crate) fn is_ours(&self) -> bool {
        u8::from(self.protocol) == ROUTE_PROTOCOL
    }
}

/// The routes of the main table, both families.
pub(crate) fn read() -> io::Result<Vec<FoundRoute>> {
    let mut routes = read_family(AddressFamily::Inet)?;
    routes.extend(read_family(AddressFamily::Inet6)?);
    Ok(routes)
}

fn read_family(family: AddressFamily) -> io::Result<Vec<FoundRoute>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let answer = dump(RouteNetlinkMessage::GetRoute(request), |message| {
        // A kernel without IPv6 answers its question with IPv4 routes.
        found(message.payload())
            .filter(|route| route.destination.addr().is_ipv4() == (family == AddressFamily::Inet))
    });
    match answer {
        // The kernel makes the IPv4 table with its first route.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        answer => answer,
    }
}

/// What a route message says; `None` for what is no route of the main table, such as a cached answer to a lookup. It is
/// read in place: the parser makes a list of each route, and there are tens of thousands.
pub(crate) fn found(message: &[u8]) -> Option<FoundRoute> {
    let header = RouteHeader::parse(message).ok()?;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut destination = any;
    let mut route = FoundRoute {
        destination: IpNet::from(any),
        kind: header.kind,
        protocol: header.protocol,
        link: None,
        source: None,
        mtu: None,
        metric: 0,
    };
    for attribute in NlasIterator::new(message.get(HEADER..)?) {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            RTA_TABLE => table = number(value)?,
            RTA_DST => destination = ip(value)?,
            RTA_OIF => route.link = number(value),
            // a next hop begins with length, flags and hops, then its link (struct rtnexthop)
            RTA_MULTIPATH => route.link = value.get(4..).and_then(number),
            RTA_PREFSRC => route.source = ip(value),
            RTA_PRIORITY => route.metric = number(value)?,
            RTA_METRICS => {
                let mut metrics = NlasIterator::new(value).map_while(Result::ok);
                route.mtu = metrics.find(|m| m.kind() == RTAX_MTU).and_then(|m| number(m.value()));
            }
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    let cloned = header.flags.contains(RouteFlags::Cloned);
    (table == u32::from(RouteHeader::RT_TABLE_MAIN) && !cloned).then_some(route)
}

/// The header's length and the attributes that are read (include/uapi/linux/rtnetlink.h).
const HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        16 => value.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

/// Puts a route into the tunnel: `replace` where one of ours is known to be there. Without it, a route of the same
/// prefix and metric that somebody else made is an error (EEXIST) and stays.
pub(crate) fn set(net: &IpNet, route: &DesiredRoute, device: u32, replace: bool) -> Request {
    let mut message = into_tunnel(net);
    message.attributes.push(RouteAttribute::Oif(device));
    message.attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    let how = if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
    Request::new(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | how)
}

/// Takes a route of ours into the tunnel away, whichever link it leads to.
pub(crate) fn remove(net: &IpNet) -> Request {
    let mut message = into_tunnel(net);
    message.header.scope = RouteScope::NoWhere; // whatever scope it has (fib_table_delete, net/ipv4/fib_trie.c)
    Request::new(RouteNetlinkMessage::DelRoute(message), 0)
}

/// Puts an unreachable route in place.
pub(crate) fn set_unreachable(net: &IpNet) -> Request {
    Request::new(RouteNetlinkMessage::NewRoute(unreachable(net)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes an unreachable route of ours away.
pub(crate) fn remove_unreachable(net: &IpNet) -> Request {
    Request::new(RouteNetlinkMessage::DelRoute(unreachable(net)), 0)
}

fn into_tunnel(net: &IpNet) -> RouteMessage {
    let mut message = ours(net, RouteType::Unicast);
    if net.addr().is_ipv4() {
        message.header.scope = RouteScope::Link;
    } else {
        message.attributes.push(RouteAttribute::Priority(IPV6_METRIC));
    }
    message
}

fn unreachable(net: &IpNet) -> RouteMessage {
    let mut message = ours(net, RouteType::Unreachable);
    message.attributes.push(RouteAttribute::Priority(UNREACHABLE_METRIC));
    message
}

fn ours(net: &IpNet, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family =
        if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = kind;
    message.header.destination_prefix_length = net.prefix_len();
    message.attributes.push(RouteAttribute::Destination(net.network().into()));
    message
}

/// Our routes as they were found.
#[derive(Debug, Default)]
pub(crate) struct OwnRoutes {
    pub(crate) unreachable: BTreeSet<IpNet>,
    pub(crate) tunnel: Vec<FoundRoute>,
}

impl FromIterator<FoundRoute> for OwnRoutes {
    fn from_iter<T: IntoIterator<Item = FoundRoute>>(routes: T) -> Self {
        let mut own = Self::default();
        for route in routes.into_iter().filter(FoundRoute::is_ours) {
            match route.kind {
                RouteType::Unreachable => {
                    own.unreachable.insert(route.destination);
                }
                RouteType::Unicast => own.tunnel.push(route),
                _ => {}
            }
        }
        own
    }
}
