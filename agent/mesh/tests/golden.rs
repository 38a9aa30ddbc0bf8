//! Plans in words, against golden files; `UPDATE_GOLDEN=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use std::{env, fs, path::PathBuf, time::Duration};

use model::{
    cluster::{decided, fresh, key, local, name, net, node, set, set_key, v4, v6, view},
    kernel::{apply_all, converge},
};
use wg_overlay_mesh::{
    ClusterView, HostChain, HostChainState, Local, ObservedState, Plan, annotation, cleanup, plan,
};

/// A converged node and what it knows.
struct Node {
    local: Local,
    nodes: ClusterView,
    state: ObservedState,
}

impl Node {
    fn converged(nodes: ClusterView) -> Self {
        let (mut local, mut state) = (local(), fresh());
        let decision = decided(&local, &nodes, &state);
        converge(&decision.desired, &mut state);
        local.holders = decision.holders;
        Self { local, nodes, state }
    }

    fn plan(&self) -> Plan {
        plan(&decided(&self.local, &self.nodes, &self.state).desired, &self.state)
    }

    fn record(&mut self, n: u8) -> &mut wg_overlay_mesh::NodeRecord {
        self.nodes.get_mut(&name(n)).unwrap()
    }
}

fn compare(scenario: &str, plan: &Plan) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/plan-{scenario}.txt"));
    let text = plan.to_string();
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn first_start() {
    let mut state = fresh();
    let chain = HostChain::Nft {
        family: "ip".to_owned(),
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        input: false,
    };
    state.host_chains.insert(chain, HostChainState::Drops);
    compare("first-start", &plan(&decided(&local(), &view(1..=3), &state).desired, &state));
}

#[test]
fn join() {
    let mut node = Node::converged(view(1..=3));
    node.nodes.extend(view([4]));
    compare("join", &node.plan());
}

#[test]
fn leave() {
    let mut node = Node::converged(view(1..=3));
    node.nodes.remove(&name(2));
    compare("leave", &node.plan());
}

#[test]
fn address_change() {
    let mut node = Node::converged(view(1..=3));
    node.record(2).internal_ips = vec!["192.0.2.200".to_owned()];
    compare("address-change", &node.plan());
}

#[test]
fn pod_cidr_change() {
    let mut at = Node::converged(view(1..=3));
    // worker-3 gets what worker-2 had
    for (n, cidr) in [(2, 20), (3, 2)] {
        at.nodes.insert(name(n), wg_overlay_mesh::NodeRecord { pod_cidrs: node(cidr).pod_cidrs, ..node(n) });
        at.record(n).annotations.remove(annotation::OVERLAY_IPS);
    }
    compare("pod-cidr-change", &at.plan());
}

#[test]
fn key_rotation() {
    let mut node = Node::converged(view(1..=3));
    set_key(node.record(2), key(100));
    compare("key-rotation", &node.plan());
}

#[test]
fn port_change() {
    let mut node = Node::converged(view(1..=3));
    set(node.record(2), annotation::LISTEN_PORT, "51821");
    node.local.settings.listen_port = 51822;
    compare("port-change", &node.plan());
}

#[test]
fn smaller_mtu() {
    let mut node = Node::converged(view(1..=3));
    // the underlay shrinks to 1400, and worker-2's path is smaller still
    node.state.underlay.links.get_mut(&2).unwrap().mtu = 1400;
    set(node.record(2), annotation::MTU, "1000");
    compare("smaller-mtu", &node.plan());
}

#[test]
fn own_pod_cidr_change_with_pods_left() {
    let mut at = Node::converged(view(1..=2));
    at.record(1).pod_cidrs = vec![v4(9).to_string(), v6(9).to_string()];
    at.state.addresses_in_use.insert(net("10.244.1.1/24"));
    let plan = at.plan();
    compare("own-pod-cidr-change", &plan);
    apply_all(&plan, &mut at.state);
    at.state.addresses_in_use.clear();
    compare("own-pod-cidr-change-last-pod-gone", &at.plan());
}

#[test]
fn roamed_endpoint() {
    let mut node = Node::converged(view(1..=3));
    let peer = node.state.peers.get_mut(&key(2)).unwrap();
    peer.endpoint = Some("198.51.100.2:1024".parse().unwrap());
    peer.handshake_age = Some(Duration::from_secs(179));
    compare("roamed-fresh", &node.plan());
    node.state.peers.get_mut(&key(2)).unwrap().handshake_age = Some(Duration::from_secs(180));
    compare("roamed-stale", &node.plan());
}

#[test]
fn a_fresh_roamed_endpoint_yields_to_a_new_advertised_one() {
    let mut node = Node::converged(view(1..=3));
    let peer = node.state.peers.get_mut(&key(2)).unwrap();
    peer.endpoint = Some("198.51.100.2:1024".parse().unwrap());
    peer.handshake_age = Some(Duration::from_secs(9));
    set(node.record(2), annotation::ENDPOINT, "203.0.113.7:4000");
    compare("roamed-readvertised", &node.plan());
}

#[test]
fn fail_open() {
    let mut node = Node::converged(view(1..=3));
    node.local.settings.fail_closed = false;
    compare("fail-open", &node.plan());
}

#[test]
fn clean_up() {
    let mut node = Node::converged(view(1..=3));
    node.state.host_chains.insert(HostChain::Legacy { ipv6: false, input: true }, HostChainState::Allowed);
    compare("cleanup", &cleanup(&node.state));
}
