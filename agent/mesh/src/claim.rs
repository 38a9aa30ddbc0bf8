//! What a Node's record says, parsed once: what it claims, where it is reached, the addresses it lives at.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{Advertisement, EndpointSpec, NodeRecord, PublicKey, Reason, Rotation, prefix::host_prefix};

/// A Node, as far as its record and what holds for every Node say.
#[derive(Debug)]
pub(crate) struct Known {
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub(crate) created: i64,
    /// The first InternalIP of each family.
    pub(crate) addresses: Box<[IpAddr]>,
    /// What it claims, or why nothing of it may be believed.
    pub(crate) claim: Result<Claim, Reason>,
}

/// A public key and all else that two nodes may not share.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) node: Arc<str>,
    pub(crate) created: i64,
    pub(crate) key: PublicKey,
    pub(crate) next_key: Option<PublicKey>,
    pub(crate) rotation: Option<Rotation>,
    pub(crate) listen_port: u16,
    pub(crate) mtu: Option<u32>,
    pub(crate) keepalive: Option<u16>,
    pub(crate) endpoint: Option<EndpointSpec>,
    pub(crate) internal_ips: Box<[IpAddr]>,
    pub(crate) external_ips: Box<[IpAddr]>,
    /// Its PodCIDRs, then the overlay addresses that lie outside them.
    prefixes: Box<[IpNet]>,
    pod_cidrs: usize,
}

impl Claim {
    pub(crate) fn new(
        node: Arc<str>,
        record: &NodeRecord,
        advertisement: Advertisement,
        pod_cidrs: Vec<IpNet>,
    ) -> Self {
        let extra =
            advertisement.overlay_ips.iter().filter(|ip| !pod_cidrs.iter().any(|net| net.contains(*ip)));
        let extra: Vec<IpNet> = extra.map(|ip| host_prefix(*ip)).collect();
        Self {
            node,
            created: record.created,
            key: advertisement.public_key,
            next_key: advertisement.next_key,
            rotation: advertisement.rotation,
            listen_port: advertisement.listen_port,
            mtu: advertisement.mtu,
            keepalive: advertisement.persistent_keepalive,
            endpoint: advertisement.endpoint,
            internal_ips: addresses(&record.internal_ips).collect(),
            external_ips: addresses(&record.external_ips).collect(),
            pod_cidrs: pod_cidrs.len(),
            prefixes: [pod_cidrs, extra].concat().into(),
        }
    }

    /// The older of two Nodes is the smaller.
    pub(crate) fn age(&self) -> (i64, &str) {
        (self.created, &self.node)
    }

    /// Its key, and the second one that it uses.
    pub(crate) fn keys(&self, next_key: Option<PublicKey>) -> impl Iterator<Item = PublicKey> {
        [Some(self.key), next_key].into_iter().flatten()
    }

    /// Every prefix that is asked for: PodCIDRs, and overlay addresses outside them.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes.iter().copied()
    }

    /// The same, each with whether it is a PodCIDR.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (IpNet, bool)> + '_ {
        self.prefixes().enumerate().map(|(at, net)| (net, at < self.pod_cidrs))
    }

    /// The name by which it is reached, where a person wrote one.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.endpoint {
            Some(EndpointSpec::Name(name, _)) => Some(name),
            _ => None,
        }
    }
}

/// The first address of each family.
pub(crate) fn first_of_each_family(
    ips: impl Iterator<Item = IpAddr> + Clone,
) -> impl Iterator<Item = IpAddr> {
    [true, false].into_iter().filter_map(move |v4| ips.clone().find(|ip| ip.is_ipv4() == v4))
}

/// The texts that are addresses.
pub(crate) fn addresses(texts: &[String]) -> impl Iterator<Item = IpAddr> + Clone + '_ {
    texts.iter().filter_map(|text| text.parse().ok())
}
