//! Links and addresses: reading them, and the netlink requests that change ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
};
use wg_overlay_mesh::{ALIAS, BRIDGE_LINK_LOCAL, Link, UnderlayLink};

use crate::netlink::{Request, dump, parsed};

/// The host side of a pod's link begins with this (`cni-plugin`).
pub(crate) const POD_LINK_PREFIX: &str = "wgp";

/// A link as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundLink {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// What made it (`IFLA_INFO_KIND`); empty for hardware.
    pub(crate) kind: String,
    pub(crate) up: bool,
    pub(crate) loopback: bool,
    pub(crate) mtu: u32,
    pub(crate) marked: bool,
    /// Whether IPv4 and IPv6 packets of a bridge pass netfilter; `None` where the kernel was built without that.
    pub(crate) netfilter: Option<bool>,
    /// Its addresses, those of link scope left out, our bridge's apart.
    pub(crate) addresses: BTreeSet<IpNet>,
}

/// Every link of this network namespace, by index.
pub(crate) fn read() -> io::Result<BTreeMap<u32, FoundLink>> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = dump(RouteNetlinkMessage::GetLink(request), |message| match parsed(message)? {
        RouteNetlinkMessage::NewLink(link) => found(&link).map(|found| (found.index, found)),
        _ => None,
    })?;
    let mut links: BTreeMap<u32, FoundLink> = links.into_iter().collect();
    for message in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), parsed)? {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(link) = links.get_mut(&message.header.index)
        {
            link.addresses.extend(address(&message));
        }
    }
    Ok(links)
}

/// What a link message says; `None` for a message without a name.
pub(crate) fn found(message: &LinkMessage) -> Option<FoundLink> {
    let flags = message.header.flags;
    let mut link = FoundLink {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu: 0,
        marked: false,
        netfilter: None,
        addresses: BTreeSet::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.marked = alias == ALIAS,
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut link),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn read_info(infos: &[LinkInfo], link: &mut FoundLink) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = kind.to_string(),
            LinkInfo::Data(InfoData::Bridge(options)) => {
                let calls = options.iter().filter_map(|option| match option {
                    InfoBridge::NfCallIpTables(on) | InfoBridge::NfCallIp6Tables(on) => Some(*on),
                    _ => None,
                });
                link.netfilter = calls.reduce(|ipv4, ipv6| ipv4 && ipv6);
            }
            _ => {}
        }
    }
}

/// The address of a message with its prefix length; `None` for one that is valid on its link only, our bridge's apart.
pub(crate) fn address(message: &AddressMessage) -> Option<IpNet> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL ours; IPv6 has IFA_LOCAL only there.
    let own = find(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None })
        .or_else(|| find(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None }))?;
    let wide =
        matches!(message.header.scope, AddressScope::Universe | AddressScope::Site | AddressScope::Other(_));
    IpNet::new(own, message.header.prefix_len).ok().filter(|net| wide || *net == BRIDGE_LINK_LOCAL)
}

/// Whether a link belongs to the network between the nodes.
pub(crate) fn is_underlay(link: &FoundLink) -> bool {
    link.up && !link.loopback && !is_own_name(&link.name)
}

/// Whether a name is of our links or the pods'.
pub(crate) fn is_own_name(name: &str) -> bool {
    is_ours(name) || name.starts_with(POD_LINK_PREFIX)
}

/// Whether a name is of a link of ours.
pub(crate) fn is_ours(name: &str) -> bool {
    [Link::Device, Link::Next, Link::Bridge].iter().any(|link| link.name() == name)
}

pub(crate) fn underlay_link(link: &FoundLink) -> UnderlayLink {
    UnderlayLink { name: link.name.clone(), mtu: link.mtu, addresses: link.addresses.clone() }
}

/// Creates a link of the kernel: a WireGuard device, or the bridge.
///
/// The bridge gets an address of its own (locally administered, RFC 7042, 2.1): without one it takes that of its
/// lowest port, and changes it as pods come and go.
pub(crate) fn create(link: Link) -> io::Result<Request> {
    let mut message = named(link);
    let kind = match link {
        Link::Device | Link::Next => InfoKind::Wireguard,
        Link::Bridge => {
            message.attributes.push(LinkAttribute::Address(random_mac()?.to_vec()));
            InfoKind::Bridge
        }
    };
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    Ok(Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL))
}

pub(crate) fn delete(link: Link) -> Request {
    Request::new(RouteNetlinkMessage::DelLink(named(link)), 0)
}

/// Writes our ifalias. The kernel takes no alias in the request that creates a link.
pub(crate) fn mark(link: Link) -> Request {
    change(link, LinkAttribute::IfAlias(ALIAS.to_owned()))
}

/// Sets the MTU. A bridge whose MTU was set once no longer follows its ports, and they do not follow it.
pub(crate) fn set_mtu(link: Link, mtu: u32) -> Request {
    change(link, LinkAttribute::Mtu(mtu))
}

pub(crate) fn set_up(link: Link) -> Request {
    let mut message = named(link);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::new(RouteNetlinkMessage::SetLink(message), 0)
}

/// Lets packets between two pods of this node pass netfilter, whatever the sysctls say.
pub(crate) fn set_bridge_netfilter() -> Request {
    let options = vec![InfoBridge::NfCallIpTables(true), InfoBridge::NfCallIp6Tables(true)];
    let mut message = named(Link::Bridge);
    let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(options))];
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Request::new(RouteNetlinkMessage::NewLink(message), 0)
}

pub(crate) fn add_address(index: u32, net: &IpNet) -> Request {
    Request::new(RouteNetlinkMessage::NewAddress(address_message(index, net)), NLM_F_CREATE | NLM_F_EXCL)
}

pub(crate) fn remove_address(index: u32, net: &IpNet) -> Request {
    Request::new(RouteNetlinkMessage::DelAddress(address_message(index, net)), 0)
}

fn change(link: Link, attribute: LinkAttribute) -> Request {
    let mut message = named(link);
    message.attributes.push(attribute);
    Request::new(RouteNetlinkMessage::SetLink(message), 0)
}

fn named(link: Link) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(link.name().to_owned()));
    message
}

fn address_message(index: u32, net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    if net.addr().is_ipv6() {
        // A bridge without a port would keep the address tentative (RFC 4862, 5.4).
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())?;
    mac[0] = (mac[0] & 0xfc) | 0x02;
    Ok(mac)
}

/// Writes an IPv4 setting of a link (`net.ipv4.conf.LINK.…`).
pub(crate) fn set_ipv4(link: Link, setting: Ipv4Setting) -> Request {
    let (kind, value) = match setting {
        Ipv4Setting::Forwarding => (1, 1u32),
        Ipv4Setting::LooseReversePath => (8, 2),
    };
    // IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { IPV4_DEVCONF_…: VALUE } } }: the kernel takes single values here, but
    // gives all of them as one array, and only that has a type in the library.
    let value = attribute(kind, &value.to_ne_bytes());
    let family = attribute(u16::from(u8::from(AddressFamily::Inet)), &attribute(1, &value));
    change(link, LinkAttribute::Other(DefaultNla::new(26 | NLA_F_NESTED, family)))
}

/// What is written of a link's IPv4 settings, by the numbers of include/uapi/linux/ip.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipv4Setting {
    /// `IPV4_DEVCONF_FORWARDING`: packets that come in by the link are forwarded.
    Forwarding,
    /// `IPV4_DEVCONF_RP_FILTER`, of value 2: their sources need a route back by any link.
    LooseReversePath,
}

/// A netlink attribute: length, type, value. The values above fill whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}
