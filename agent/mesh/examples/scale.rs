//! What decisions cost by the number of Nodes: CPU of a full decision, a full plan, and one Node's change.
//!
//! `cargo run --release -p wg-overlay-mesh --example scale [NODES]`; dual stack, the median of many rounds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use rustix::time::{ClockId, clock_gettime};
use wg_overlay_mesh::{
    Advertisement, Changes, ClusterView, DesiredState, Implementation, KeepaliveSetting, Local, Mesh,
    MtuSetting, NodeRecord, ObservedBridge, ObservedDevice, ObservedFirewall, ObservedPeer, ObservedRoute,
    ObservedState, PublicKey, Resolved, Settings, Underlay, UnderlayLink, UnderlayRoute, decide, first_host,
    plan, plan_touched, ruleset,
};

fn main() {
    let nodes = std::env::args().nth(1).map_or(5000, |n| n.parse().unwrap());
    let (mut local, mut view) = (local(), ClusterView::new());
    view.extend((0..nodes).map(|n| (name(n), record(n, n))));
    let mut state = ObservedState { underlay: underlay(), ..ObservedState::default() };
    let decision = decide(&local, &view, &Resolved::new(), &state).unwrap();
    assert_eq!((decision.desired.peers.len() + 1, decision.refusals.len()), (nodes as usize, 0));
    carry_out(&decision.desired, &mut state);
    local.holders = decision.holders;

    let decided = || decide(&local, &view, &Resolved::new(), &state).unwrap();
    println!("{nodes} nodes, dual stack");
    print("decide, all", 20, decided);
    let desired = decided().desired;
    assert!(plan(&desired, &state).steps.is_empty());
    print("plan, all", 50, || plan(&desired, &state));
    print("ruleset", 50, || ruleset(&desired.firewall));

    let resolved = Resolved::new();
    let mut mesh = Mesh::new(local.holders.clone());
    mesh.update(&local, &view, &resolved, &state, Changes::default()).unwrap();
    mesh.update(&local, &view, &resolved, &state, Changes::default()).unwrap();
    print("update, nothing changed", 100, || {
        mesh.update(&local, &view, &resolved, &state, Changes::default()).unwrap()
    });
    let mut link = state.underlay.links.get(&2).unwrap().clone();
    print("update, a link's MTU changed", 20, || {
        link.mtu = 2900 - link.mtu;
        state.underlay.links.insert(2, link.clone());
        mesh.update(&local, &view, &resolved, &state, Changes::default()).unwrap()
    });
    let mut change = |what: &str, edit: &dyn Fn(u32, &mut ClusterView)| {
        let mut round = 0;
        let (mut decided, mut planned, mut steps) = (Vec::new(), Vec::new(), 0);
        for _ in 0..100 {
            round += 1;
            edit(round, &mut view);
            let nodes = BTreeSet::from([name(nodes / 2)]);
            let before = cpu();
            let touched = mesh
                .update(&local, &view, &resolved, &state, Changes { nodes, ..Changes::default() })
                .unwrap();
            let between = cpu();
            let desired = &mesh.decision().unwrap().desired;
            steps = plan_touched(desired, &state, &touched).steps.len();
            planned.push(cpu() - between);
            decided.push(between - before);
            carry_out(desired, &mut state);
        }
        println!("{what}: {steps} steps");
        median("  update", decided);
        median("  plan", planned);
    };
    let n = nodes / 2;
    change("a Node's address", &|round, view| {
        view.get_mut(&name(n)).unwrap().internal_ips[0] =
            Ipv4Addr::from_bits(0xac1f_0000 + round).to_string();
    });
    change("a Node's key", &|round, view| {
        view.insert(name(n), record(n, if round % 2 == 0 { n } else { nodes + 7 }));
    });
    change("a Node's PodCIDRs", &|round, view| {
        let other = if round % 2 == 0 { n } else { nodes + 7 };
        let moved = NodeRecord { internal_ips: record(n, n).internal_ips, ..record(other, n) };
        view.insert(name(n), moved);
    });
    change("a Node leaves or joins", &|round, view| {
        match round % 2 {
            0 => view.insert(name(n), record(n, n)),
            _ => view.remove(&name(n)),
        };
    });
    let memory = fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", memory.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}

fn print<T>(what: &str, rounds: usize, mut work: impl FnMut() -> T) {
    let costs = (0..rounds)
        .map(|_| {
            let before = cpu();
            std::hint::black_box(work());
            cpu() - before
        })
        .collect();
    median(what, costs);
}

fn median(what: &str, mut costs: Vec<u64>) {
    costs.sort_unstable();
    println!("{what:<40}{:>10.1} us", costs[costs.len() / 2] as f64 / 1e3);
}

/// The process's time on a processor, in nanoseconds.
fn cpu() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
}

fn key(n: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
    bytes[4..8].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(bytes).unwrap()
}

fn name(n: u32) -> String {
    format!("ip-10-64-{n}.eu-central-1.compute.internal")
}

/// Node `n` as its agent publishes it, with the key of another number where it has changed.
fn record(n: u32, key_of: u32) -> NodeRecord {
    let v4 = format!("{}/24", Ipv4Addr::from_bits(0x0a40_0000 + (n << 8)));
    let v6 = format!("{}/64", Ipv6Addr::from_bits((0xfd00_0244 << 96) + (u128::from(n) << 64)));
    let first = |net: &String| first_host(&net.parse().unwrap()).unwrap();
    let advertisement = Advertisement {
        public_key: key(key_of),
        overlay_ips: [&v4, &v6].into_iter().map(first).collect(),
        listen_port: 51820,
        mtu: Some(1420),
        endpoint: None,
        persistent_keepalive: None,
    };
    NodeRecord {
        created: 1_700_000_000 + i64::from(n),
        annotations: advertisement.annotations(false),
        pod_cidrs: vec![v4, v6],
        internal_ips: vec![
            Ipv4Addr::from_bits(0xac10_0001 + n).to_string(),
            Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n) + 1).to_string(),
        ],
        external_ips: vec![],
    }
}

fn local() -> Local {
    let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<BTreeSet<_>>();
    Local {
        node_name: name(0),
        public_key: key(0),
        max_mtu: 65535,
        settings: Settings {
            cluster_cidrs: nets(&["10.64.0.0/10", "fd00:244::/32"]),
            overlay_cidrs: BTreeSet::new(),
            reserved: vec![("10.32.0.0/16".parse().unwrap(), "the service range".to_owned())],
            listen_port: 51820,
            mtu: MtuSetting::Auto,
            keepalive: KeepaliveSetting::Auto,
            masquerade: true,
            non_masquerade: BTreeSet::new(),
            fail_closed: true,
        },
        holders: BTreeMap::new(),
    }
}

fn underlay() -> Underlay {
    let addresses = ["172.16.0.1/12", "2001:db8::1/64"].iter().map(|a| a.parse().unwrap()).collect();
    let eth0 = UnderlayLink { name: "eth0".to_owned(), mtu: 1500, addresses };
    let route = |to: &str| UnderlayRoute { destination: to.parse().unwrap(), link: 2, metric: 0 };
    Underlay {
        links: BTreeMap::from([(2, eth0)]),
        routes: ["0.0.0.0/0", "::/0", "172.16.0.0/12", "2001:db8::/64"].map(route).to_vec(),
    }
}

/// The kernel once all of it is programmed.
fn carry_out(desired: &DesiredState, state: &mut ObservedState) {
    let implementation = Implementation::Kernel;
    let (device, bridge) = (&desired.device, &desired.bridge);
    state.device = Some(ObservedDevice {
        implementation,
        marked: true,
        up: true,
        mtu: device.mtu,
        addresses: device.addresses.clone(),
        public_key: Some(device.public_key),
        listen_port: device.listen_port,
    });
    let (mtu, addresses) = (bridge.mtu, bridge.addresses.clone());
    state.bridge = Some(ObservedBridge { marked: true, up: true, mtu, addresses, netfilter: Some(true) });
    state.unreachable.clone_from(&desired.unreachable);
    let peer = |p: &wg_overlay_mesh::DesiredPeer| ObservedPeer {
        endpoint: p.endpoint.map(|(e, _)| e),
        written_endpoint: p.endpoint.map(|(e, _)| e),
        allowed_ips: p.allowed_ips.clone(),
        keepalive: p.keepalive,
        ..ObservedPeer::default()
    };
    state.peers = desired.peers.iter().map(|(key, p)| (*key, peer(p))).collect();
    let route = |r: &wg_overlay_mesh::DesiredRoute| ObservedRoute {
        through_device: true,
        source: r.source,
        mtu: r.mtu,
    };
    state.routes = desired.routes.iter().map(|(net, r)| (*net, route(r))).collect();
    let endpoints = desired.firewall.endpoints.clone();
    state.firewall = Some(ObservedFirewall { ruleset: ruleset(&desired.firewall), endpoints });
}
