//! Arithmetic on prefixes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The first host address of a prefix: a node's overlay address and the gateway of its pods.
/// `None` where the prefix has no room for a gateway and a pod (longer than /30 or /126).
pub fn first_host(net: &IpNet) -> Option<IpAddr> {
    match net.trunc() {
        IpNet::V4(n) if n.prefix_len() <= 30 => {
            Some(IpAddr::V4(Ipv4Addr::from_bits(n.addr().to_bits().checked_add(1)?)))
        }
        IpNet::V6(n) if n.prefix_len() <= 126 => {
            Some(IpAddr::V6(Ipv6Addr::from_bits(n.addr().to_bits().checked_add(1)?)))
        }
        _ => None,
    }
}

/// Whether two prefixes share an address.
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether an address is one that packets of one node can be sent to: not unspecified, loopback, multicast,
/// link-local, broadcast or an IPv4 address in IPv6 form (RFC 4291, section 2.5.5.2).
pub(crate) fn is_routable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_link_local()
                || a.is_broadcast())
        }
        IpAddr::V6(a) => {
            let mapped = a.to_ipv4_mapped().is_some();
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || mapped)
        }
    }
}

/// A prefix of one address.
pub(crate) fn host_prefix(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

/// Whether both are of one address family.
pub(crate) fn same_family(a: &IpAddr, b: &IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_is_the_gateway() {
        let first = |net: &str| first_host(&net.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(first("10.244.1.0/24").as_deref(), Some("10.244.1.1"));
        assert_eq!(first("10.244.1.77/24").as_deref(), Some("10.244.1.1"));
        assert_eq!(first("fd00:244:0:1::/64").as_deref(), Some("fd00:244:0:1::1"));
        assert_eq!(first("10.0.0.0/31"), None);
        assert_eq!(first("fd00::/127"), None);
    }

    #[test]
    fn addresses_nobody_can_answer_from_are_not_routable() {
        for ip in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255"] {
            assert!(!is_routable(&ip.parse().unwrap()), "{ip}");
        }
        for ip in ["::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.1"] {
            assert!(!is_routable(&ip.parse().unwrap()), "{ip}");
        }
        for ip in ["192.0.2.1", "2001:db8::1", "fd00::1"] {
            assert!(is_routable(&ip.parse().unwrap()), "{ip}");
        }
    }
}
