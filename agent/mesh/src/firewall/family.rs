//! What a table of both families says twice, in the words of each family.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::Firewall;

/// What the rules of one address family need.
pub(super) struct Family {
    /// `ip` or `ip6`.
    pub(super) ip: &'static str,
    pub(super) digit: char,
    /// The type of an address in a set.
    pub(super) kind: &'static str,
    /// The pod prefixes, without overlap.
    pub(super) cluster: Vec<IpNet>,
    /// The destinations that see pod addresses.
    pub(super) direct: Vec<IpNet>,
    /// This node's own address.
    pub(super) overlay: Option<IpAddr>,
}

impl Family {
    /// `None` where the cluster has no IPv4 prefix.
    pub(super) fn v4(firewall: &Firewall) -> Option<Self> {
        Self::new(firewall, ("ip", '4', "ipv4_addr"), IpAddr::is_ipv4)
    }

    /// `None` where the cluster has no IPv6 prefix.
    pub(super) fn v6(firewall: &Firewall) -> Option<Self> {
        Self::new(firewall, ("ip6", '6', "ipv6_addr"), IpAddr::is_ipv6)
    }

    fn new(
        firewall: &Firewall,
        (ip, digit, kind): (&'static str, char, &'static str),
        is: fn(&IpAddr) -> bool,
    ) -> Option<Self> {
        // An interval set refuses overlapping elements.
        let of_family = |nets: &BTreeSet<IpNet>| {
            IpNet::aggregate(&nets.iter().filter(|n| is(&n.addr())).copied().collect::<Vec<_>>())
        };
        let cluster = of_family(&firewall.cluster);
        let direct = of_family(&firewall.non_masquerade);
        let overlay = firewall.overlay_ips.iter().find(|a| is(a)).copied();
        (!cluster.is_empty()).then_some(Self { ip, digit, kind, cluster, direct, overlay })
    }

    /// The set's name.
    pub(super) fn cluster_set(&self) -> String {
        format!("cluster{}", self.digit)
    }

    /// The set's name; there is one only where there are such destinations.
    pub(super) fn direct_set(&self) -> String {
        format!("non_masquerade{}", self.digit)
    }

    /// A match that keeps the direct destinations out; empty where there are none.
    pub(super) fn not_direct(&self, field: &str) -> String {
        if self.direct.is_empty() {
            return String::new();
        }
        format!("{} {field} != @{} ", self.ip, self.direct_set())
    }
}
