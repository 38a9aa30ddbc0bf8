//! A pod's link: the netlink requests that make it, and how it is taken away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use wg_overlay_ipam::Range;

use super::{error::CniError, netns::Netns};
use crate::{
    names::Mac,
    netlink::{Link, Netlink, Request},
};

/// Loopback is the first link of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// A link whose name is given instead of its index.
const BY_NAME: u32 = 0;

/// What a link is made of.
pub(crate) struct PodLink<'a> {
    pub(crate) host_name: String,
    pub(crate) host_mac: Mac,
    pub(crate) pod_name: &'a str,
    pub(crate) pod_mac: Mac,
    pub(crate) mtu: u32,
}

impl PodLink<'_> {
    /// Both ends in one request, the pod's directly in its namespace. Both are down: the kernel can't set up the peer
    /// here, and the host's end gets its settings first. The kernel would make queues for every processor, and then use one
    /// (`veth_init_queues` of drivers/net/veth.c).
    pub(crate) fn create(&self, bridge: &Link, netns: &Netns) -> Request {
        let one_queue = || [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod_name.to_owned()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Address(self.pod_mac.to_vec()),
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
        ];
        peer.attributes.extend(one_queue());
        let mut host = LinkMessage::default();
        host.attributes = vec![
            LinkAttribute::IfName(self.host_name.clone()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Address(self.host_mac.to_vec()),
            LinkAttribute::Controller(bridge.index),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        host.attributes.extend(one_queue());
        Request {
            what: format!(
                "make the link {} on {} with {} in {}",
                self.host_name,
                bridge.name,
                self.pod_name,
                netns.path().display()
            ),
            message: RouteNetlinkMessage::NewLink(host),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// The host's end as a port: hairpin, so that a pod reaches itself through a Service. Where pods have IPv6, without
    /// an address of its own (elsewhere the kernel may have no IPv6 to set on the link).
    pub(crate) fn set_up_port(&self, ipv6: bool) -> Request {
        let mut message = up(BY_NAME);
        message.attributes = vec![
            LinkAttribute::IfName(self.host_name.clone()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
            ]),
        ];
        if ipv6 {
            let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
            message.attributes.push(LinkAttribute::AfSpecUnspec(vec![no_address]));
        }
        Request {
            what: format!("set up {} as a bridge port with hairpin", self.host_name),
            message: RouteNetlinkMessage::NewLink(message),
            flags: 0,
        }
    }

    /// The mark that the link is complete.
    pub(crate) fn mark(&self, alias: String) -> Request {
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(self.host_name.clone()), LinkAttribute::IfAlias(alias)];
        Request {
            what: format!("mark {}", self.host_name),
            message: RouteNetlinkMessage::SetLink(message),
            flags: 0,
        }
    }
}

/// Loopback and the pod's link up, its addresses, its default routes.
pub(crate) fn configure_pod(link: &Link, networks: &[(Range, IpAddr)]) -> Vec<Request> {
    let set_up = |index, name: &str| Request {
        what: format!("set up {name} in the pod"),
        message: RouteNetlinkMessage::SetLink(up(index)),
        flags: 0,
    };
    let mut requests = vec![set_up(LOOPBACK_INDEX, "lo")];
    if networks.iter().any(|(range, _)| range.gateway().is_ipv6()) {
        requests.push(by_mac(link));
    }
    requests.push(set_up(link.index, &link.name));
    requests.extend(networks.iter().map(|(range, address)| add_address(link, *range, *address)));
    requests.extend(networks.iter().map(|(range, _)| add_default_route(link, *range)));
    requests
}

/// Lets the kernel make the link-local address from the MAC, whatever the node's own default is: the port takes no other.
fn by_mac(link: &Link) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    let by_mac = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::Eui64)]);
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![by_mac])];
    Request {
        what: format!("have the link-local address of {} made from its MAC", link.name),
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

/// The default route's destination of a family.
pub(crate) fn unspecified(gateway: IpAddr) -> IpAddr {
    match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Deletes the host's end of a holder's link, and with it the pod's, if it is ours: marked for this holder, or unmarked
/// where `reserved` says that an ADD of this holder did not get to its end.
pub(crate) fn delete(host: &mut Netlink, name: &str, alias: &str, reserved: bool) -> Result<(), CniError> {
    if let Some(link) = host.link(name)?
        && link.alias.as_ref().map_or(reserved, |mark| mark == alias)
    {
        host.delete_link(&link)?;
    }
    Ok(())
}

fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Without duplicate detection in IPv6: the reservation is what keeps addresses apart, and a pod must not wait.
fn add_address(link: &Link, range: Range, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = range.prefix().prefix_len();
    message.header.index = link.index;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if let (IpAddr::V4(_), IpAddr::V4(broadcast)) = (address, range.prefix().broadcast()) {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    Request {
        what: format!("add {address}/{} to {} in the pod", range.prefix().prefix_len(), link.name),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

fn add_default_route(link: &Link, range: Range) -> Request {
    let gateway = range.gateway();
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(link.index)];
    Request {
        what: format!("add the pod's default route via {gateway}"),
        message: RouteNetlinkMessage::NewRoute(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}
