//! Nodes, one a line, and what worker-1 decides on them. A Node is JSON as the API server sends it, or what a Node says in
//! short: the fields of [`SHORT`], then PodCIDRs and addresses with commas, all parted by bars.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use wg_overlay_mesh::{
    Advertisement, Changes, ClusterView, Decision, KeepaliveSetting, Local, Mesh, MtuSetting, NodeRecord,
    ObservedState, PackedView, PublicKey, Resolved, Settings, Underlay, UnderlayLink, UnderlayRoute,
    annotation, decide, plan,
};

#[allow(dead_code, missing_docs)] // the watcher's part
#[path = "../../../../agent/src/cluster/node.rs"]
mod node;

const OWN: &str = "worker-1";
const SHORT: [&str; 6] = [
    annotation::PUBLIC_KEY,
    annotation::OVERLAY_IPS,
    annotation::LISTEN_PORT,
    annotation::MTU,
    annotation::ENDPOINT,
    annotation::PERSISTENT_KEEPALIVE,
];

fuzz_target!(|data: &[u8]| {
    let (mut local, observed, resolved) = (local(), observed(), Resolved::new());
    let (mut view, mut packed, mut mesh) = (ClusterView::new(), PackedView::default(), Mesh::default());
    let nodes = data.split(|byte| *byte == b'\n').filter_map(read).take(8);
    for (name, record) in [(OWN.to_owned(), own())].into_iter().chain(nodes) {
        is_read_again(&record);
        packed.insert(&name, &record);
        view.insert(name.clone(), record);
        let changes = Changes { nodes: BTreeSet::from([name]), peers: BTreeSet::new() };
        let followed = mesh.update(&local, &packed, &resolved, &observed, changes);
        let anew = decide(&local, &view, &resolved, &observed);
        match (followed, anew) {
            (Ok(_), Ok(decision)) => {
                assert_eq!(mesh.decision(), Some(&decision), "what is followed is what is decided anew");
                is_safe(&decision, &local.settings);
                drop(plan(&decision.desired, &observed).to_string());
                local.holders = decision.holders;
            }
            (followed, anew) => assert_eq!(followed.err(), anew.err()),
        }
    }
});

fn read(line: &[u8]) -> Option<(String, NodeRecord)> {
    if !line.starts_with(b"{") {
        return Some(short(std::str::from_utf8(line).ok()?));
    }
    let node: node::SlimNode = serde_json::from_slice(line).ok()?;
    Some((kube::Resource::meta(&node).name.clone()?, node.record))
}

/// The Node is named by its key: another line may change it.
fn short(line: &str) -> (String, NodeRecord) {
    let mut fields = line.split('|');
    let said = SHORT.iter().zip(fields.by_ref().take(SHORT.len())).filter(|(_, value)| !value.is_empty());
    let annotations: BTreeMap<_, _> =
        said.map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect();
    let mut list = || fields.next().unwrap_or_default().split(',').map(str::to_owned).collect();
    let (pod_cidrs, internal_ips) = (list(), list());
    let name = annotations.get(annotation::PUBLIC_KEY).cloned().unwrap_or_default();
    (name, NodeRecord { created: 2000, annotations, pod_cidrs, internal_ips, ..NodeRecord::default() })
}

/// What an agent writes of an advertisement is read as that advertisement. Each agent has an overlay address.
fn is_read_again(record: &NodeRecord) {
    let Ok(said) = Advertisement::parse(&record.annotations) else { return };
    if said.overlay_ips.is_empty() {
        return;
    }
    let written = said.annotations(true);
    let read = Advertisement::parse(&written).expect("what is written is read");
    let Advertisement { endpoint, persistent_keepalive, .. } = said.clone();
    assert_eq!(Advertisement { endpoint, persistent_keepalive, ..read }, said);
}

/// Nothing outside the cluster's networks is believed, and nothing of another's.
fn is_safe(decision: &Decision, settings: &Settings) {
    let inside = |net: &IpNet| settings.cluster_cidrs.iter().any(|cidr| cidr.contains(net));
    assert!(decision.desired.routes.keys().all(inside), "{:?}", decision.desired.routes);
    let peers = decision.desired.peers.values().map(|peer| peer.allowed_ips.to_set());
    let own = decision.pod_cidrs.iter().copied().collect();
    let sets: Vec<BTreeSet<IpNet>> = peers.chain([own]).collect();
    for (at, one) in sets.iter().enumerate() {
        assert!(one.iter().all(inside), "{one:?}");
        for other in sets.iter().skip(at + 1) {
            let apart = |net: &IpNet| !other.iter().any(|of| of.contains(net) || net.contains(of));
            assert!(one.iter().all(apart), "{one:?} and {other:?}");
        }
    }
}

fn own() -> NodeRecord {
    NodeRecord {
        created: 1000,
        pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:244:0:1::/64".into()],
        internal_ips: vec!["192.0.2.1".into(), "2001:db8::1".into()],
        ..NodeRecord::default()
    }
}

fn nets<const N: usize>(texts: [&str; N]) -> BTreeSet<IpNet> {
    texts.into_iter().map(|text| text.parse().expect("a prefix")).collect()
}

fn local() -> Local {
    Local {
        node_name: OWN.to_owned(),
        public_key: PublicKey::from_bytes([7; 32]).expect("a key"),
        next_key: None,
        rotation: None,
        max_mtu: 65535,
        settings: Settings {
            cluster_cidrs: nets(["10.244.0.0/16", "fd00:244::/56"]),
            overlay_cidrs: BTreeSet::new(),
            reserved: nets(["10.96.0.0/12"])
                .into_iter()
                .map(|net| (net, "the service range".to_owned()))
                .collect(),
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

fn observed() -> ObservedState {
    let addresses = nets(["192.0.2.1/24", "2001:db8::1/64"]);
    let links = BTreeMap::from([(2, UnderlayLink { name: "eth0".to_owned(), mtu: 1500, addresses })]);
    let route = |destination| UnderlayRoute { destination, link: 2, metric: 0 };
    let routes =
        nets(["0.0.0.0/0", "::/0", "192.0.2.0/24", "2001:db8::/64"]).into_iter().map(route).collect();
    ObservedState { underlay: Underlay { links, routes }, ..ObservedState::default() }
}
