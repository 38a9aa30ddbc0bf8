//! Generators: any cluster view, hostile ones among them, and any state that a kernel can be in.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;
use proptest::{collection::btree_map, option, prelude::*, sample::select};
use wg_overlay_mesh::{
    ClusterView, DesiredState, HostChain, HostChainState, Implementation, IpNets, Link, Local, NodeRecord,
    ObservedBridge, ObservedDevice, ObservedFirewall, ObservedNext, ObservedPeer, ObservedRoute,
    ObservedState, PORT_RULESET, PublicKey, Rotation, annotation, ruleset,
};

use super::cluster::{
    decided, fresh, ip, key, local, name, net, nets, next, node, set, set_key, v4, v6, view,
};

/// A decision to be made: this node, its cluster and its kernel.
#[derive(Debug, Clone)]
pub struct Case {
    pub local: Local,
    pub view: ClusterView,
    pub observed: ObservedState,
}

impl Case {
    /// What the kernel should hold; the kernel's table is told what of it is right.
    pub fn desired(&self) -> DesiredState {
        decided(&self.local, &self.view, &self.observed).desired
    }
}

/// Any case. The observed table, where there is one, holds the right rules, or none of them.
pub fn case() -> impl Strategy<Value = Case> {
    let own = (
        select(vec![Some(next(1)), Some(next(1)), Some(key(1)), Some(key(3)), None]),
        option::weighted(0.4, any_rotation()),
    );
    let rest = (1280u32..1600, any_view(), any_observed(), any::<bool>());
    (any::<bool>(), any::<bool>(), own, rest).prop_map(
        |(ipv6, fail_closed, (next_key, rotation), (max_mtu, mut view, mut observed, right_rules))| {
            let mut local = local();
            local.settings.fail_closed = fail_closed;
            (local.next_key, local.rotation) = (next_key, rotation);
            local.max_mtu = max_mtu;
            if !ipv6 {
                view.entry(name(1)).and_modify(|own| own.pod_cidrs.truncate(1));
            }
            let case = Case { local: local.clone(), view: view.clone(), observed: observed.clone() };
            let text = ruleset(&case.desired().firewall);
            for firewall in observed.firewall.iter_mut().filter(|_| right_rules) {
                firewall.ruleset.clone_from(&text);
            }
            Case { local, view, observed }
        },
    )
}

/// `worker-1` with up to eight others, of which some claim what others have.
fn any_view() -> impl Strategy<Value = ClusterView> {
    btree_map(2..=9u8, any_node(), 0..8).prop_map(|others| {
        let mut all = view([1]);
        all.extend(others.into_iter().map(|(n, change)| (name(n), change.apply(n))));
        all
    })
}

/// What a Node says otherwise than an honest one.
#[derive(Debug, Clone)]
pub struct NodeChange {
    created: Option<i64>,
    key: Option<u8>,
    next_key: Option<Option<u8>>,
    rotation: Option<Rotation>,
    cidr: Option<(u8, bool, bool)>,
    overlay_ip: Option<u8>,
    internal_ip: Option<&'static str>,
    values: Vec<(&'static str, &'static str)>,
}

pub fn any_node() -> impl Strategy<Value = NodeChange> {
    let values = [
        (annotation::LISTEN_PORT, "51821"),
        (annotation::MTU, "1300"),
        (annotation::MTU, "700"),
        (annotation::PERSISTENT_KEEPALIVE, "15"),
        (annotation::ENDPOINT, "203.0.113.7:4000"),
        (annotation::ENDPOINT, "edge.example.com"),
        (annotation::PUBLIC_KEY, "none"),
        (annotation::ROTATION, "none"),
    ];
    let addresses = ["192.0.2.77", "203.0.113.9", "10.244.3.7", "192.0.2.1", "fe80::1", "2001:db8::99"];
    (
        option::weighted(0.3, 990..1020i64),
        option::weighted(0.2, 1..=10u8),
        option::weighted(0.3, option::of(select(vec![1, 2, 3, 4, 5, 101, 102, 103, 104, 105]))),
        option::weighted(0.4, any_rotation()),
        option::weighted(0.4, (1..=10u8, any::<bool>(), any::<bool>())),
        option::weighted(0.1, 1..=10u8),
        option::weighted(0.2, select(addresses.to_vec())),
        proptest::collection::vec(select(values.to_vec()), 0..2),
    )
        .prop_map(|(created, key, next_key, rotation, cidr, overlay_ip, internal_ip, values)| {
            NodeChange { created, key, next_key, rotation, cidr, overlay_ip, internal_ip, values }
        })
}

pub fn any_rotation() -> impl Strategy<Value = Rotation> {
    select(vec![Rotation::Away, Rotation::Back])
}

impl NodeChange {
    /// The record of `worker-n`.
    pub fn apply(self, n: u8) -> NodeRecord {
        let mut record = node(n);
        record.created = self.created.unwrap_or(record.created);
        if let Some(other) = self.key {
            set_key(&mut record, key(other));
        }
        if let Some(other) = self.next_key {
            record.annotations.remove(annotation::NEXT_PUBLIC_KEY);
            let text = other.map(|other| key(other).to_string());
            text.into_iter().for_each(|text| set(&mut record, annotation::NEXT_PUBLIC_KEY, text));
        }
        if let Some(rotation) = self.rotation {
            set(&mut record, annotation::ROTATION, rotation.to_string());
        }
        if let Some((m, with_v4, with_v6)) = self.cidr {
            let cidrs = [(v4(m), with_v4), (v6(m), with_v6)];
            record.pod_cidrs =
                cidrs.iter().filter(|(_, with)| *with).map(|(net, _)| net.to_string()).collect();
            record.annotations.remove(annotation::OVERLAY_IPS);
        }
        if let Some(m) = self.overlay_ip {
            set(&mut record, annotation::OVERLAY_IPS, format!("10.244.{m}.1"));
        }
        if let Some(address) = self.internal_ip {
            record.internal_ips.insert(0, address.to_owned());
        }
        for (name, value) in self.values {
            set(&mut record, name, value);
        }
        record
    }
}

/// The prefixes that peers, routes and links of the generated kernels have: nodes', a whole cluster's, foreign ones.
pub fn prefixes() -> Vec<IpNet> {
    let nodes = (1..=10).flat_map(|n| [v4(n), v6(n)]);
    nodes.chain(nets(["10.244.0.0/16", "10.99.0.0/16", "0.0.0.0/0", "10.244.3.9/32"])).collect()
}

fn any_observed() -> impl Strategy<Value = ObservedState> {
    let chain = |ipv6, input| HostChain::Legacy { ipv6, input };
    let state = select(vec![HostChainState::Drops, HostChainState::Allowed, HostChainState::Unneeded]);
    (
        (option::weighted(0.8, any_device()), option::weighted(0.5, any_next())),
        option::weighted(0.8, any_bridge()),
        proptest::sample::subsequence(
            vec![net("10.244.0.0/16"), net("fd00:244::/56"), net("10.99.0.0/16")],
            0..=3,
        ),
        any_peers(),
        btree_map(select(prefixes()), any_route(), 0..8),
        option::weighted(0.7, proptest::sample::subsequence(vec!["192.0.2.3:51820", "192.0.2.9:1"], 0..=2)),
        btree_map((any::<bool>(), any::<bool>()).prop_map(move |(a, b)| chain(a, b)), state, 0..3),
        proptest::sample::subsequence(vec![net("10.244.8.1/24"), net("fd00:244:0:8::1/64")], 0..=2),
        select(vec![None, Some(""), Some(PORT_RULESET)]),
    )
        .prop_map(
            |((device, next), bridge, unreachable, peers, routes, endpoints, host_chains, in_use, ports)| {
                let port_guard = ports.map(str::to_owned);
                let mut state =
                    ObservedState { device, next, bridge, peers, routes, port_guard, host_chains, ..fresh() };
                state.unreachable = unreachable.into_iter().collect();
                state.addresses_in_use = in_use.into_iter().collect();
                state.firewall = endpoints.map(|endpoints| ObservedFirewall {
                    ruleset: String::new(),
                    endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
                });
                possible(state)
            },
        )
}

/// Takes away what no kernel holds: peers and routes without a device, IPv6 on a small link, a peer with its own key.
fn possible(mut state: ObservedState) -> ObservedState {
    let next = state.next.as_ref().map(|next| &next.device);
    let up = [(Link::Device, state.device.as_ref()), (Link::Next, next)]
        .map(|(link, d)| (link, d.is_some_and(|d| d.up)));
    state.routes.retain(|_, route| route.through.is_none_or(|link| up.contains(&(link, true))));
    if let Some(next) = &mut state.next {
        next.peers.retain(|key, _| Some(*key) != next.device.public_key);
    }
    match &state.device {
        Some(device) => state.peers.retain(|key, _| Some(*key) != device.public_key),
        None => state.peers.clear(),
    }
    let next = state.next.as_mut().map(|next| &mut next.device);
    let devices = state.device.as_mut().into_iter().chain(next).map(|d| (d.mtu, &mut d.addresses));
    let bridge = state.bridge.as_mut().map(|b| (b.mtu, &mut b.addresses));
    for (_, addresses) in devices.chain(bridge).filter(|(mtu, _)| *mtu < 1280) {
        addresses.retain(|a| a.addr().is_ipv4());
    }
    state
}

fn any_device() -> impl Strategy<Value = ObservedDevice> {
    let addresses =
        ["10.244.1.1/32", "fd00:244:0:1::1/128", "10.244.9.1/32", "10.99.0.1/16"].map(net).to_vec();
    (
        any::<[bool; 3]>(),
        select(vec![1000, 1280, 1420, 9000]),
        proptest::sample::subsequence(addresses, 0..=4),
        option::of(select(vec![key(1), next(1), key(2), key(99)])),
        select(vec![0, 51820, 51821, 51822]),
    )
        .prop_map(|([marked, up, kernel], mtu, addresses, public_key, listen_port)| ObservedDevice {
            implementation: if kernel { Implementation::Kernel } else { Implementation::UserSpace },
            marked,
            up,
            mtu,
            addresses: addresses.into_iter().collect(),
            public_key,
            listen_port,
        })
}

/// A second device, whose peers are known by either of their keys.
fn any_next() -> impl Strategy<Value = ObservedNext> {
    (any_device(), any_peers(), any::<bool>(), any::<bool>()).prop_map(
        |(mut device, peers, by_next_key, right)| {
            let by_key = |(at, peer): (PublicKey, ObservedPeer)| {
                let n = (1..=12).find(|n| key(*n) == at).filter(|_| by_next_key);
                (n.map_or(at, next), peer)
            };
            device.public_key = if right { Some(next(1)) } else { device.public_key };
            ObservedNext { device, peers: peers.into_iter().map(by_key).collect() }
        },
    )
}

fn any_bridge() -> impl Strategy<Value = ObservedBridge> {
    let addresses =
        ["10.244.1.1/24", "fd00:244:0:1::1/64", "10.244.8.1/24", "10.99.0.1/16"].map(net).to_vec();
    (
        any::<[bool; 2]>(),
        select(vec![1000, 1280, 1420, 9000]),
        proptest::sample::subsequence(addresses, 0..=4),
        option::of(any::<bool>()),
    )
        .prop_map(|([marked, up], mtu, addresses, netfilter)| ObservedBridge {
            marked,
            up,
            mtu,
            addresses: addresses.into_iter().collect(),
            netfilter,
        })
}

/// Peers of which each prefix belongs to one, as in the kernel.
fn any_peers() -> impl Strategy<Value = BTreeMap<PublicKey, ObservedPeer>> {
    let peers = btree_map((1..=12u8).prop_map(key), any_peer(), 0..8);
    let owners =
        proptest::collection::vec(option::weighted(0.2, any::<prop::sample::Index>()), prefixes().len());
    (peers, owners).prop_map(|(mut peers, owners)| {
        let keys: Vec<_> = peers.keys().copied().collect();
        for (net, owner) in prefixes().into_iter().zip(owners) {
            if let (Some(owner), false) = (owner, keys.is_empty()) {
                peers.entry(*owner.get(&keys)).or_default().allowed_ips.insert(net);
            }
        }
        peers
    })
}

pub fn any_peer() -> impl Strategy<Value = ObservedPeer> {
    let sockets =
        ["192.0.2.3:51820", "203.0.113.7:4000", "198.51.100.1:9"].map(|s| s.parse().unwrap()).to_vec();
    (
        option::of(select(sockets.clone())),
        option::of(select(sockets)),
        select(vec![0, 25]),
        any::<bool>(),
        option::of(select(vec![0, 179, 180, 9999])),
    )
        .prop_map(|(endpoint, written_endpoint, keepalive, preshared_key, age)| ObservedPeer {
            endpoint,
            written_endpoint,
            allowed_ips: IpNets::default(),
            keepalive,
            preshared_key,
            handshake_age: age.map(Duration::from_secs),
            received: 0,
            sent: 0,
        })
}

fn any_route() -> impl Strategy<Value = ObservedRoute> {
    let through = select(vec![Some(Link::Device), Some(Link::Next), None]);
    (through, option::of(select(vec![ip("10.244.1.1"), ip("10.244.9.1")])), option::of(Just(1300)))
        .prop_map(|(through, source, mtu)| ObservedRoute { through, source, mtu })
}
