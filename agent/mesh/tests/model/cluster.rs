//! Honest nodes `worker-1`, `worker-2`, …, seen by `worker-1`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use wg_overlay_mesh::{
    Advertisement, ClusterView, Decision, KeepaliveSetting, Local, MtuSetting, NodeRecord, ObservedState,
    PublicKey, Resolved, Settings, Underlay, UnderlayLink, UnderlayRoute, annotation, decide,
};

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn nets<const N: usize>(texts: [&str; N]) -> BTreeSet<IpNet> {
    texts.into_iter().map(net).collect()
}

/// The key of `worker-n`.
pub fn key(n: u8) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[0] = n;
    PublicKey::from_bytes(bytes).unwrap()
}

/// The key that `worker-n` changes to next.
pub fn next(n: u8) -> PublicKey {
    key(n + 100)
}

pub fn name(n: u8) -> String {
    format!("worker-{n}")
}

pub fn v4(n: u8) -> IpNet {
    net(&format!("10.244.{n}.0/24"))
}

pub fn v6(n: u8) -> IpNet {
    net(&format!("fd00:244:0:{n:x}::/64"))
}

/// The Node `worker-n`, with what its agent publishes; the smaller the older.
pub fn node(n: u8) -> NodeRecord {
    let advertisement = Advertisement {
        public_key: key(n),
        next_key: Some(next(n)),
        rotation: None,
        overlay_ips: [v4(n), v6(n)].iter().filter_map(wg_overlay_mesh::first_host).collect(),
        listen_port: 51820,
        mtu: Some(1420),
        endpoint: None,
        persistent_keepalive: None,
    };
    NodeRecord {
        created: 1000 + i64::from(n),
        annotations: advertisement.annotations(false),
        pod_cidrs: vec![v4(n).to_string(), v6(n).to_string()],
        internal_ips: vec![format!("192.0.2.{n}"), format!("2001:db8::{n:x}")],
        external_ips: vec![],
    }
}

pub fn set(record: &mut NodeRecord, annotation: &str, value: impl Into<String>) {
    record.annotations.insert(annotation.to_owned(), value.into());
}

pub fn set_key(record: &mut NodeRecord, key: PublicKey) {
    set(record, annotation::PUBLIC_KEY, key.to_string());
}

pub fn view(nodes: impl IntoIterator<Item = u8>) -> ClusterView {
    nodes.into_iter().map(|n| (name(n), node(n))).collect()
}

/// `worker-1`, at its start.
pub fn local() -> Local {
    Local {
        node_name: name(1),
        public_key: key(1),
        next_key: Some(next(1)),
        rotation: None,
        max_mtu: 65535,
        settings: Settings {
            cluster_cidrs: nets(["10.244.0.0/16", "fd00:244::/56"]),
            overlay_cidrs: BTreeSet::new(),
            reserved: vec![
                (net("10.96.0.0/12"), "the service range".to_owned()),
                (net("10.244.250.6/32"), "the API server".to_owned()),
            ],
            listen_port: 51820,
            mtu: MtuSetting::Auto,
            keepalive: KeepaliveSetting::Auto,
            masquerade: true,
            non_masquerade: BTreeSet::new(),
            fail_closed: true,
        },
        holders: BTreeMap::new(),
        key_holders: BTreeMap::new(),
    }
}

/// A kernel with an underlay and nothing of ours.
pub fn fresh() -> ObservedState {
    let eth0 = UnderlayLink {
        name: "eth0".to_owned(),
        mtu: 1500,
        addresses: nets(["192.0.2.1/24", "2001:db8::1/64"]),
    };
    let lab0 = UnderlayLink { name: "lab0".to_owned(), mtu: 1500, addresses: nets(["10.244.251.9/28"]) };
    let route = |destination, link| UnderlayRoute { destination: net(destination), link, metric: 0 };
    let routes = ["0.0.0.0/0", "::/0", "192.0.2.0/24", "2001:db8::/64"].map(|to| route(to, 2)).to_vec();
    let links = BTreeMap::from([(2, eth0), (3, lab0)]);
    ObservedState { underlay: Underlay { links, routes }, ..ObservedState::default() }
}

pub fn decided(local: &Local, view: &ClusterView, observed: &ObservedState) -> Decision {
    decide(local, view, &Resolved::new(), observed).unwrap()
}
