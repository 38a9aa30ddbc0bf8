//! CHECK: is everything there that ADD made?

use std::{net::IpAddr, path::Path};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use serde_json::Value;
use wg_overlay_ipam::{Holder, Range};

use super::{
    conf::{NetConf, PrevResult},
    error::CniError,
    netns::Netns,
    port_guard::PortGuard,
    result::mac_text,
};
use crate::{
    BRIDGE, PodPort,
    names::{TABLE, pod_link_alias, pod_link_name},
    netlink::{Link, Netlink, Reply},
    store,
};

/// Compares the kernel and the reservation with each other and with `prevResult`. What later plugins of the chain added is
/// no difference.
pub(crate) fn check(conf: &NetConf, holder: &Holder, netns_path: &Path) -> Result<(), CniError> {
    let differs = |difference: String| CniError::Check { holder: holder.to_string(), difference };
    let Some(previous) = conf.prev_result()? else {
        return Err(CniError::Config("CHECK needs prevResult, the result of ADD".to_owned()));
    };
    let reservation = store(&conf.state_dir).get(holder).map_err(CniError::Ipam)?;
    let addresses = reservation.ok_or_else(|| differs("no address is reserved".to_owned()))?.addresses;

    let netns = Netns::open(netns_path)?;
    let mut host = Netlink::open()?;
    let bridge = host.link(BRIDGE)?.ok_or(CniError::NoBridge)?;
    let name = pod_link_name(holder);
    let link = host.link(&name)?.ok_or_else(|| differs(format!("the link {name} is missing")))?;
    if link.alias.as_deref() != Some(&pod_link_alias(holder)) {
        return Err(differs(format!("the link {name} is marked {:?}", link.alias)));
    }
    if link.controller != Some(bridge.index) || !link.up {
        return Err(differs(format!("the link {name} is not up on the bridge {BRIDGE}")));
    }

    let guard = PortGuard::open()?;
    let mut pod = netns.enter(&bridge)?;
    let ifname = holder.ifname();
    let inside = pod.link(ifname)?.ok_or_else(|| differs(format!("the pod's link {ifname} is missing")))?;
    if !inside.up {
        return Err(differs(format!("the pod's link {ifname} is down")));
    }
    check_previous(&previous, &inside, &addresses).map_err(differs)?;
    let mac = inside.mac.as_slice().try_into().unwrap_or_default();
    if !guard.has(&PodPort { link: name, mac, addresses: addresses.clone() })? {
        return Err(differs(format!(
            "the nftables table bridge {TABLE} lacks the pod's link, MAC or addresses"
        )));
    }
    let present = pod_addresses(&mut pod, inside.index)?;
    for address in &addresses {
        let Some(prefix_len) = present.iter().find(|(there, _)| there == address).map(|(_, length)| *length)
        else {
            return Err(differs(format!("{address} is not on the pod's link {ifname}")));
        };
        let gateway = ipnet::IpNet::new(*address, prefix_len).ok().and_then(|prefix| Range::new(prefix).ok());
        let gateway = gateway.map(|range| range.gateway());
        if !default_gateways(&mut pod, inside.index)?.into_iter().any(|via| Some(via) == gateway) {
            return Err(differs(format!("the pod has no default route for {address} by {ifname}")));
        }
    }
    Ok(())
}

/// The pod's interface and our addresses must be in the result of ADD.
fn check_previous(previous: &PrevResult, inside: &Link, addresses: &[IpAddr]) -> Result<(), String> {
    let text = |object: &serde_json::Map<String, Value>, key: &str| {
        object.get(key).and_then(Value::as_str).map(str::to_lowercase).unwrap_or_default()
    };
    let entry = previous
        .interfaces
        .iter()
        .find(|interface| {
            text(interface, "name") == inside.name.to_lowercase() && !text(interface, "sandbox").is_empty()
        })
        .ok_or_else(|| format!("prevResult has no interface {}", inside.name))?;
    let mac = mac_text(&inside.mac);
    if text(entry, "mac") != mac {
        return Err(format!("{} has the MAC {mac}, and in prevResult {:?}", inside.name, text(entry, "mac")));
    }
    for address in addresses {
        let is_it = |ip: &serde_json::Map<String, Value>| {
            text(ip, "address").split('/').next().and_then(|ip| ip.parse().ok()) == Some(*address)
        };
        if !previous.ips.iter().any(is_it) {
            return Err(format!("prevResult does not have the reserved {address}"));
        }
    }
    Ok(())
}

fn pod_addresses(pod: &mut Netlink, index: u32) -> Result<Vec<(IpAddr, u8)>, CniError> {
    let replies =
        pod.dump("list the pod's addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            Reply::Address(message) if message.header.index == index => Some(message),
            _ => None,
        })
        .flat_map(|message| {
            let length = message.header.prefix_len;
            message.attributes.into_iter().filter_map(move |attribute| match attribute {
                AddressAttribute::Address(address) => Some((address, length)),
                _ => None,
            })
        })
        .collect())
}

fn default_gateways(pod: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, CniError> {
    let replies =
        pod.dump("list the pod's routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let by_this = |route: &RouteMessage| {
        route.header.destination_prefix_length == 0 && route.attributes.contains(&RouteAttribute::Oif(index))
    };
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            Reply::Route(route) if by_this(&route) => {
                route.attributes.into_iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(v4.into()),
                    RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(v6.into()),
                    _ => None,
                })
            }
            _ => None,
        })
        .collect())
}
