//! Routes of the main table: reading them, and the netlink requests that change ours.
//!
//! Ours carry protocol 87. Two kinds of them may share a prefix: into the tunnel, and unreachable below it.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
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
    let answer = dump(RouteNetlinkMessage::GetRoute(request), |message| match message {
        // A kernel without IPv6 answers its question with IPv4 routes.
        RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => found(&route),
        _ => None,
    });
    match answer {
        // The kernel makes the IPv4 table with its first route.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        answer => answer,
    }
}

/// What a route message says; `None` for what is no route of the main table.
pub(crate) fn found(message: &RouteMessage) -> Option<FoundRoute> {
    let header = &message.header;
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
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(to) => destination = ip(to)?,
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::MultiPath(hops) => route.link = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::PrefSource(from) => route.source = ip(from),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics
                    .iter()
                    .find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
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
