//! Nodes that only the API knows, as large as a kubelet's: about 19 KB of JSON, most of it images and managed fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use wg_overlay_e2e::lab::{ApiClient, Lab, LabConfig, NodeConfig};

/// The pod networks: room for 8,192 nodes with a /24, and as many with a /64.
pub const POD_CIDRS: [&str; 2] = ["10.128.0.0/11", "fd00:244::/48"];
/// Where the made-up nodes' numbers begin; below are the lab's own.
pub const FIRST: u16 = 10;

/// A node by its number: name, key, addresses and PodCIDRs follow from it.
#[derive(Debug, Clone, Copy)]
pub struct MadeUp {
    /// Below 8,192.
    pub number: u16,
    /// Which key it has had so far.
    pub key: u8,
    /// The number that its PodCIDRs follow from.
    pub pods: u16,
    /// The second part of its address, 31 at first.
    pub net: u8,
}

impl MadeUp {
    /// As it joins.
    pub fn new(number: u16) -> Self {
        Self { number, key: 1, pods: number, net: 31 }
    }

    /// Its Node's name.
    pub fn name(&self) -> String {
        format!("made-up-{}", self.number)
    }

    /// Its public key.
    pub fn key_bytes(&self) -> [u8; 32] {
        let mut bytes = [self.key; 32];
        let [high, low] = self.number.to_be_bytes();
        bytes[0] = low;
        bytes[1] = high;
        bytes
    }

    /// Its InternalIP.
    pub fn address(&self) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(172, self.net, high, low)
    }

    /// Its PodCIDRs, IPv4 first.
    pub fn pod_cidrs(&self) -> [IpNet; 2] {
        let [high, low] = self.pods.to_be_bytes();
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 128 + high, low, 0));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, self.pods, 0, 0, 0, 0));
        [IpNet::new_assert(v4, 24), IpNet::new_assert(v6, 64)]
    }

    /// The annotations that its agent would publish.
    pub fn annotations(&self) -> Value {
        let ips = self.pod_cidrs().map(|net| wg_overlay_mesh::first_host(&net).map(|ip| ip.to_string()));
        json!({
            "wg-overlay.io/public-key": BASE64_STANDARD.encode(self.key_bytes()),
            "wg-overlay.io/overlay-ips": ips.into_iter().flatten().collect::<Vec<_>>().join(","),
            "wg-overlay.io/listen-port": "51820",
            "wg-overlay.io/mtu": "1420",
        })
    }

    /// Its addresses, for `status`.
    pub fn addresses(&self) -> Value {
        json!([
            { "type": "InternalIP", "address": self.address() },
            { "type": "Hostname", "address": self.name() },
        ])
    }

    /// The Node.
    pub fn object(&self) -> Value {
        let name = self.name();
        let [v4, v6] = self.pod_cidrs();
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {
                "name": name, "annotations": self.annotations(), "managedFields": managed_fields(),
                "labels": {
                    "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                    "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "zone-a",
                },
            },
            "spec": { "podCIDR": v4, "podCIDRs": [v4, v6], "providerID": format!("cloud:///zone-a/{name}") },
            "status": {
                "addresses": self.addresses(), "conditions": conditions(0), "images": images(),
                "capacity": { "cpu": "16", "memory": "65806456Ki", "pods": "110", "ephemeral-storage": "102624184Ki" },
                "allocatable": { "cpu": "15890m", "memory": "62871032Ki", "pods": "110" },
                "nodeInfo": {
                    "architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "6.12.0-cloud",
                    "kubeletVersion": "v1.36.0", "containerRuntimeVersion": "containerd://2.3.4",
                },
            },
        })
    }
}

/// The conditions that a kubelet writes with each heartbeat.
pub fn conditions(beat: u32) -> Value {
    let at = format!("2026-01-01T{:02}:{:02}:{:02}Z", beat / 3600 % 24, beat / 60 % 60, beat % 60);
    let kinds = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready", "NetworkUnavailable"];
    kinds
        .map(|kind| {
            json!({
                "type": kind, "status": if kind == "Ready" { "True" } else { "False" },
                "lastHeartbeatTime": at, "lastTransitionTime": "2026-01-01T00:00:00Z",
                "reason": format!("KubeletHas{kind}"), "message": format!("kubelet says {kind}"),
            })
        })
        .into_iter()
        .collect()
}

fn images() -> Value {
    let image = |n: u32| {
        json!({ "sizeBytes": 100_000_000 + n, "names": [
            format!("registry.example.com/platform/component-{n:03}@sha256:{n:064x}"),
            format!("registry.example.com/platform/component-{n:03}:v1.{n}.0-build.20260101"),
        ] })
    };
    (0..50).map(image).collect()
}

fn managed_fields() -> Value {
    let fields: Map<String, Value> =
        (0..40).map(|n| (format!("f:field-of-a-kubelet-{n:02}"), json!({}))).collect();
    ["kubelet", "kube-controller-manager", "wg-overlay"]
        .map(|manager| {
            json!({
                "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": { "f:status": fields },
            })
        })
        .into_iter()
        .collect()
}

/// A lab of so many own nodes whose cluster has room for thousands.
pub fn lab(nodes: u8) -> Result<Lab> {
    let mut config = LabConfig { nodes: 0, ..LabConfig::default() };
    config.agent.insert("podCIDRs".into(), json!(POD_CIDRS));
    let mut lab = Lab::new(config)?;
    for number in 1..=nodes {
        let cidrs = MadeUp::new(number.into()).pod_cidrs().map(|net| net.to_string());
        lab.add_node(NodeConfig { pod_cidrs: Some(cidrs.into()), ..NodeConfig::default() })?;
    }
    Ok(lab)
}

/// The made-up nodes, so many.
pub fn made_up(count: u16) -> impl Iterator<Item = MadeUp> {
    (FIRST..FIRST + count).map(MadeUp::new)
}

/// Puts them into the store.
pub fn create(api: &ApiClient, count: u16) -> Result<()> {
    made_up(count).try_for_each(|node| api.create("/api/v1/nodes", &node.object()).map(drop))
}

/// Takes them out of it.
pub fn delete(api: &ApiClient, count: u16) -> Result<()> {
    made_up(count).try_for_each(|node| api.delete_node(&node.name()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_node_is_as_large_as_a_kubelets() {
        let size = MadeUp::new(8191).object().to_string().len();
        assert!((17_000..21_000).contains(&size), "{size} bytes");
    }

    #[test]
    fn no_two_nodes_share_a_key_an_address_or_a_prefix() {
        let all: Vec<MadeUp> = made_up(8000).collect();
        let distinct = |text: fn(&MadeUp) -> String| all.iter().map(text).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|node| format!("{:?}", node.key_bytes())), all.len());
        assert_eq!(distinct(|node| node.address().to_string()), all.len());
        assert_eq!(distinct(|node| format!("{:?}", node.pod_cidrs())), all.len());
        let networks = POD_CIDRS.map(|text| text.parse::<IpNet>().unwrap());
        let inside = |net: &IpNet| networks.iter().any(|network| network.contains(net));
        assert!(all.iter().all(|node| node.pod_cidrs().iter().all(inside)));
    }
}
