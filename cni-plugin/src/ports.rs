//! The pods' ports on the bridge: what each may send from, as the sets of the nftables table `bridge wg-overlay` hold it.
//!
//! Owns the elements' content. The plugin adds a pod's before its link goes up, the agent fills the sets of a new table and
//! removes what is left over; the rules that ask the sets are the agent's (agent/mesh/src/firewall/ports.nft).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
};
use rustix::io::Errno;
use thiserror::Error;
use wg_overlay_ipam::IpamError;

use crate::{
    collect::store,
    names::{Mac, pod_link_macs, pod_link_name},
    netlink::{self, Link, Netlink, NetlinkError, Request},
};

/// A pod's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPort {
    /// The name of the host's end of its link.
    pub link: String,
    /// The MAC of the pod's end.
    pub mac: Mac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The ports can't be told.
#[derive(Debug, Error)]
pub enum PortsError {
    /// The reservations could not be read.
    #[error("could not read which addresses pods have")]
    Ipam(#[source] IpamError),
    /// The links could not be read.
    #[error("could not read the pods' links")]
    Netlink(#[source] NetlinkError),
}

/// The ports of all pods that hold addresses, attached or just being so. To be called in the host's network namespace.
pub fn ports(state_dir: &Path) -> Result<Vec<PodPort>, PortsError> {
    let reservations = store(state_dir).list().map_err(PortsError::Ipam)?;
    let mut netlink = Netlink::open().map_err(PortsError::Netlink)?;
    let links = netlink.links().map_err(PortsError::Netlink)?;
    let links: BTreeMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut ports = Vec::with_capacity(reservations.len());
    for reservation in reservations {
        let link = pod_link_name(&reservation.holder);
        let (host, pod) = pod_link_macs(&reservation.holder);
        let mac = match links.get(link.as_str()) {
            // made by a version that chose MACs at random
            Some(found) if found.mac != host => peer_mac(&mut netlink, found).map_err(PortsError::Netlink)?,
            _ => Some(pod),
        };
        let port = |mac| PodPort { link, mac, addresses: reservation.addresses };
        ports.extend(mac.map(port));
    }
    Ok(ports)
}

/// The MAC of a veth's other end, in whichever network namespace it is; `None` where it is gone.
fn peer_mac(netlink: &mut Netlink, link: &Link) -> Result<Option<Mac>, NetlinkError> {
    let (index, netns) = link.peer;
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    message.attributes.extend(netns.map(LinkAttribute::IfNetnsId));
    let request = Request {
        what: format!("look for the other end of {}", link.name),
        message: RouteNetlinkMessage::GetLink(message),
        flags: 0,
    };
    match netlink.request(vec![request]) {
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        other => Ok(netlink::links(other?).next().and_then(|peer| peer.mac.try_into().ok())),
    }
}

impl PodPort {
    /// The elements of each set that stand for this port, as the kernel takes a concatenation: each part begins at a
    /// multiple of 4 bytes (nft(8)).
    pub fn elements(&self) -> [(&'static str, Vec<Vec<u8>>); 3] {
        const IFNAMSIZ: usize = 16; // linux/if.h
        let key = |address: &[u8]| {
            let mut key = self.link.clone().into_bytes();
            key.resize(IFNAMSIZ, 0);
            [&key, self.mac.as_slice(), &[0; 2], address].concat()
        };
        let (mut v4, mut v6) = (Vec::new(), vec![key(&self.link_local().octets())]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => v4.push(key(&address.octets())),
                IpAddr::V6(address) => v6.push(key(&address.octets())),
            }
        }
        [("pods", vec![key(&[])]), ("pods4", v4), ("pods6", v6)]
    }

    /// The same as commands for `nft -f`, on a table of family `bridge`.
    pub fn script(&self, table: &str) -> String {
        let [a, b, c, d, e, f] = self.mac;
        let port = format!(r#""{}" . {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"#, self.link);
        let add = |set: &str, rest: String| format!("add element bridge {table} {set} {{ {port}{rest} }}\n");
        let v6 = |address: Ipv6Addr| add("pods6", format!(" . 0x{:032x}", address.to_bits()));
        let of_address = |address: &IpAddr| match address {
            IpAddr::V4(address) => add("pods4", format!(" . {address}")),
            IpAddr::V6(address) => v6(*address),
        };
        let addresses = self.addresses.iter().map(of_address);
        [add("pods", String::new()), v6(self.link_local())].into_iter().chain(addresses).collect()
    }

    /// What the kernel makes of the MAC (RFC 4291, appendix A).
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_as_the_kernel_takes_them() {
        let port = PodPort {
            link: "wgp0123456789ab".to_owned(),
            mac: [0x02, 0x23, 0x45, 0x67, 0x89, 0xab],
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        };
        let [(_, pods), (_, pods4), (_, pods6)] = port.elements();
        let begin = b"wgp0123456789ab\0\x02\x23\x45\x67\x89\xab\0\0".to_vec();
        assert_eq!(pods, std::slice::from_ref(&begin));
        assert_eq!(pods4, [[begin.as_slice(), &[10, 244, 1, 2]].concat()]);
        let link_local = "fe80::23:45ff:fe67:89ab".parse::<Ipv6Addr>().unwrap();
        let [first, second] = pods6.as_slice() else { panic!("{pods6:?}") };
        assert_eq!(first, &[begin.as_slice(), &link_local.octets()].concat());
        assert!(second.ends_with(&[0, 2]) && second.len() == 40);
    }
}
