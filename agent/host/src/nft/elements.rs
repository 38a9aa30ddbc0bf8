//! The elements of our sets that change without their table: the endpoint sets', in the words of `nft`, and all in bytes.

use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;
use wg_overlay_mesh::TABLE;

use super::NftError;

/// `NFPROTO_INET` and `NFPROTO_BRIDGE`, include/uapi/linux/netfilter.h.
pub(super) const INET: u8 = 1;
pub(super) const BRIDGE: u8 = 7;

/// The sets of pods' ports.
pub(super) const PORT_SETS: [&str; 3] = ["pods", "pods4", "pods6"];

/// An element of one of our sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    /// The family of the set's table.
    pub(super) family: u8,
    /// The set.
    pub(super) set: &'static str,
    /// The key; each part begins at a multiple of 4 bytes (nft(8), concatenations).
    pub(super) key: Vec<u8>,
}

impl Element {
    /// What stands for an endpoint.
    pub(super) fn endpoint(endpoint: &SocketAddr) -> Self {
        let (set, mut key) = match endpoint.ip() {
            IpAddr::V4(ip) => ("endpoints4", ip.octets().to_vec()),
            IpAddr::V6(ip) => ("endpoints6", ip.octets().to_vec()),
        };
        key.extend(endpoint.port().to_be_bytes());
        key.extend([0; 2]);
        Self { family: INET, set, key }
    }

    /// An element of a set of pods' ports.
    pub(super) fn port(set: &'static str, key: Vec<u8>) -> Self {
        Self { family: BRIDGE, set, key }
    }
}

/// The endpoints that `nft` listed as elements.
pub(super) fn endpoints(listed: &[Value]) -> Result<BTreeSet<SocketAddr>, NftError> {
    let wrong = || NftError::Answer {
        program: "nft",
        arguments: format!("-j list table inet {TABLE}"),
        expected: "an address and a port as the endpoint sets' elements",
        source: None,
    };
    listed.iter().map(|element| endpoint(element).ok_or_else(wrong)).collect()
}

fn endpoint(element: &Value) -> Option<SocketAddr> {
    let [address, port] = element.get("concat")?.as_array()?.as_slice() else { return None };
    let address: IpAddr = address.as_str()?.parse().ok()?;
    Some(SocketAddr::new(address, u16::try_from(port.as_u64()?).ok()?))
}

/// Commands that add the endpoints, one for each family that has any.
pub(super) fn endpoint_script(endpoints: &BTreeSet<SocketAddr>) -> String {
    let mut script = String::new();
    for (set, v4) in [("endpoints4", true), ("endpoints6", false)] {
        let of_family = endpoints.iter().filter(|e| e.is_ipv4() == v4);
        let list: Vec<String> = of_family.map(|e| format!("{} . {}", e.ip(), e.port())).collect();
        if !list.is_empty() {
            // Writing into a String can't fail.
            let _ = writeln!(script, "add element inet {TABLE} {set} {{ {} }}", list.join(", "));
        }
    }
    script
}
