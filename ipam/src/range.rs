//! Which addresses of a prefix pods may have, and in which order they are tried.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use thiserror::Error;

/// The addresses of one prefix that pods may hold.
///
/// Left out are the first address (the network's in IPv4, the subnet-router anycast of RFC 4291 2.6.1 in IPv6), the
/// first host address (the gateway) and, in IPv4, the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    prefix: IpNet,
    first: u128,
    last: u128,
}

/// A prefix with no room for a pod beside its gateway.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0} has no address left for a pod beside the gateway: use /30 or shorter in IPv4, /126 or shorter in IPv6"
)]
pub struct RangeError(IpNet);

impl Range {
    /// The usable addresses of `prefix`; host bits of `prefix` are ignored.
    pub fn new(prefix: IpNet) -> Result<Self, RangeError> {
        let prefix = prefix.trunc();
        let hosts_bits = prefix.max_prefix_len() - prefix.prefix_len();
        if hosts_bits < 2 {
            return Err(RangeError(prefix));
        }
        let reserved_at_end = u128::from(prefix.addr().is_ipv4());
        let first = number(prefix.network()) + 2;
        let last = number(prefix.broadcast()) - reserved_at_end;
        Ok(Self { prefix, first, last })
    }

    /// The prefix that the range was made of.
    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The first host address: the pods' gateway, never given to a pod.
    pub fn gateway(&self) -> IpAddr {
        self.address(self.first - 1)
    }

    /// Number of addresses that pods can hold.
    pub fn capacity(&self) -> u128 {
        self.last - self.first + 1
    }

    /// Every usable address once, in order, beginning after `cursor`. Lazy: a /64 costs no more than a /24.
    pub(crate) fn walk_after(&self, cursor: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let usable = self.first..=self.last;
        let begin = cursor
            .filter(|address| address.is_ipv4() == self.prefix.addr().is_ipv4())
            .and_then(|address| number(address).checked_add(1))
            .filter(|next| usable.contains(next))
            .unwrap_or(self.first);
        (begin..=self.last).chain(self.first..begin).map(|n| self.address(n))
    }

    #[allow(clippy::cast_possible_truncation)] // a number of an IPv4 range is below 2^32 by `new`
    fn address(&self, number: u128) -> IpAddr {
        if self.prefix.addr().is_ipv4() {
            IpAddr::V4((number as u32).into())
        } else {
            IpAddr::V6(number.into())
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix.fmt(f)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 20u8..=30).prop_map(|(a, len)| IpNet::new(IpAddr::V4(a.into()), len).unwrap()),
            (any::<u128>(), 116u8..=126).prop_map(|(a, len)| IpNet::new(IpAddr::V6(a.into()), len).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn a_walk_is_every_host_but_the_gateway_once(prefix in prefix(), cursor in any::<prop::sample::Index>()) {
            let range = Range::new(prefix).unwrap();
            let gateway = range.gateway();
            // ipnet's own notion of hosts: it leaves out network and broadcast in IPv4 only.
            let mut expected: Vec<IpAddr> =
                prefix.hosts().filter(|a| *a != gateway && *a != prefix.network()).collect();
            prop_assert_eq!(range.capacity(), expected.len() as u128);

            let at = cursor.index(expected.len());
            let walk: Vec<IpAddr> = range.walk_after(Some(expected[at])).collect();
            let count = expected.len();
            expected.rotate_left((at + 1) % count);
            prop_assert_eq!(walk, expected);
        }
    }

    #[test]
    fn too_small_a_prefix_is_refused_and_a_cursor_from_elsewhere_is_ignored() {
        for text in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
            assert!(Range::new(text.parse().unwrap()).is_err(), "{text}");
        }
        let range = Range::new("10.0.0.0/24".parse().unwrap()).unwrap();
        for cursor in ["fd00::5", "10.0.1.7", "9.255.255.255", "10.0.0.254", "10.0.0.255"] {
            let first = range.walk_after(Some(cursor.parse().unwrap())).next();
            assert_eq!(first, Some("10.0.0.2".parse().unwrap()), "{cursor}");
        }
    }

    #[test]
    fn the_widest_prefixes_do_not_overflow() {
        for text in ["0.0.0.0/0", "255.255.255.252/30", "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"]
        {
            let range = Range::new(text.parse().unwrap()).unwrap();
            assert!(range.walk_after(Some(range.prefix().broadcast())).next().is_some(), "{text}");
        }
    }
}
