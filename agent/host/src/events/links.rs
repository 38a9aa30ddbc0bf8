//! A memory of links, by which an event that changes something for us is told from one that does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, route::RouteType,
};

use crate::{
    links::{self, FoundLink},
    netlink::{Message, parsed},
    routes,
};

/// The links as the events so far leave them, by index.
#[derive(Debug, Default)]
pub(crate) struct KnownLinks(BTreeMap<u32, FoundLink>);

impl KnownLinks {
    /// The links of this moment.
    pub(super) fn read() -> io::Result<Self> {
        links::read().map(Self)
    }

    /// Takes an event and tells whether it is of others and matters.
    pub(crate) fn heard(&mut self, message: Message<'_>, own: bool) -> bool {
        match message.message_type() {
            // thousands at once, of which nothing is remembered
            RTM_NEWROUTE | RTM_DELROUTE => !own && self.route_matters(message.payload()),
            _ => parsed(message).is_some_and(|message| self.follow(&message)) && !own,
        }
    }

    /// Remembers what a message says and tells whether it matters.
    fn follow(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(message) => self.follow_link(message),
            RouteNetlinkMessage::DelLink(message) => self.forget_link(message),
            RouteNetlinkMessage::NewAddress(message) => {
                self.follow_address(message, |addresses, net| addresses.insert(net))
            }
            RouteNetlinkMessage::DelAddress(message) => {
                self.follow_address(message, |addresses, net| addresses.remove(&net))
            }
            _ => false,
        }
    }

    fn follow_link(&mut self, message: &LinkMessage) -> bool {
        let Some(mut link) = links::found(message).filter(|_| !is_port_message(message)) else {
            return false;
        };
        let before = self.0.remove(&link.index);
        link.addresses = before.as_ref().map(|link| link.addresses.clone()).unwrap_or_default();
        let changed = before.as_ref() != Some(&link);
        let matters = matters(&link) || before.as_ref().is_some_and(matters);
        self.0.insert(link.index, link);
        changed && matters
    }

    fn forget_link(&mut self, message: &LinkMessage) -> bool {
        if is_port_message(message) {
            return false;
        }
        self.0.remove(&message.header.index).is_some_and(|link| matters(&link))
    }

    fn follow_address(
        &mut self,
        message: &AddressMessage,
        change: impl FnOnce(&mut BTreeSet<IpNet>, IpNet) -> bool,
    ) -> bool {
        let Some(net) = links::address(message) else { return false };
        let Some(link) = self.0.get_mut(&message.header.index) else { return true };
        change(&mut link.addresses, net) && matters(link)
    }

    /// Whether a route that came, went or changed matters.
    fn route_matters(&self, message: &[u8]) -> bool {
        let Some(route) = routes::found(message) else { return false };
        if is_of_one_link(&route.destination.addr()) {
            return false;
        }
        let link = route.link.and_then(|index| self.0.get(&index));
        let foreign = route.kind == RouteType::Unicast && link.is_none_or(links::is_underlay);
        route.is_ours() || foreign
    }
}

/// include/uapi/linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// The bridge's own messages on its ports; "deleted" means there that a port left.
fn is_port_message(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

fn matters(link: &FoundLink) -> bool {
    links::is_ours(&link.name) || links::is_underlay(link)
}

/// Destinations that each link has, and that lead no packet to another network.
fn is_of_one_link(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}
