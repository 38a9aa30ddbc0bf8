//! The device's key, port and peers.

use std::net::UdpSocket;

use wg_overlay_host::{Host, PrivateKey, Scope, StepError};
use wg_overlay_mesh::{Implementation, IpNets, Link, PeerChange, PublicKey, Step, plan};

use crate::{
    Test,
    lab::{Node, PATIENCE, config, net, prefix4, prefix6, run, sh, words},
};

pub const TESTS: &[Test] = &[
    ("peers_are_added_changed_and_removed", change),
    ("a_prefix_moves_to_another_peer_in_one_step", moved),
    ("a_peer_of_six_hundred_allowed_ips_is_read_as_one", large),
    ("a_refused_peer_is_named_and_the_others_go_on", refused),
    ("the_key_outlives_the_agent", key),
    ("another_key_than_the_plans_is_refused", wrong_key),
    ("a_taken_port_names_its_holder", port),
    ("a_preshared_key_that_somebody_set_is_removed", preshared),
    ("a_peer_that_somebody_changed_is_repaired_at_the_resync", drift),
];

fn change() {
    run(async {
        let mut node = Node::new();
        let keys: Vec<PublicKey> = (0..200).map(|n| node.add_peer(n)).collect();
        node.converge(Scope::ALL).await;
        node.assert_converged().await;
        let peer = node.desired.peers.get_mut(&keys[3]).unwrap();
        peer.keepalive = 25;
        peer.endpoint.as_mut().unwrap().0 = "[2001:db8::9]:4500".parse().unwrap();
        peer.allowed_ips.insert(net("10.250.1.0/24"));
        node.desired.peers.remove(&keys[4]);
        let plan = node.converge(Scope::NONE).await;
        assert_eq!(plan.steps.len(), 2, "{plan}");
        node.assert_converged().await;
        let found = &node.host.observe(Scope::WIREGUARD).await.unwrap().peers[&keys[3]];
        assert_eq!(found.endpoint, Some("[2001:db8::9]:4500".parse().unwrap()));
        assert_eq!(found.written_endpoint, found.endpoint);
        assert_eq!((found.keepalive, found.handshake_age), (25, None));
    });
}

fn moved() {
    run(async {
        let mut node = Node::new();
        let (from, to) = (node.add_peer(1), node.add_peer(2));
        node.converge(Scope::ALL).await;
        node.desired.peers.get_mut(&from).unwrap().allowed_ips.remove(&prefix4(1));
        node.desired.peers.get_mut(&to).unwrap().allowed_ips.insert(prefix4(1));
        let plan = node.converge(Scope::NONE).await;
        assert!(
            matches!(&plan.steps[..], [Step::SetPeer(PeerChange { replace_allowed_ips: None, .. })]),
            "{plan}"
        );
        node.assert_converged().await;
        // One that nobody takes over goes by a replacement.
        node.desired.peers.get_mut(&to).unwrap().allowed_ips.remove(&prefix6(2));
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn large() {
    run(async {
        let mut node = Node::new();
        let key = node.add_peer(1);
        let nets: IpNets = (0..300).flat_map(|n| [prefix4(1000 + n), prefix6(1000 + n)]).collect();
        node.desired.peers.get_mut(&key).unwrap().allowed_ips = nets.clone();
        node.converge(Scope::ALL).await;
        node.assert_converged().await;
        assert_eq!(node.host.observe(Scope::WIREGUARD).await.unwrap().peers[&key].allowed_ips, nets);
        // Replaced by as many others: only the first part may say so.
        let others: IpNets = (0..600).map(|n| prefix6(3000 + n)).collect();
        node.desired.peers.get_mut(&key).unwrap().allowed_ips = others.clone();
        node.converge(Scope::NONE).await;
        assert_eq!(node.host.observe(Scope::WIREGUARD).await.unwrap().peers[&key].allowed_ips, others);
        node.assert_converged().await;
    });
}

/// A host without a device refuses each; one peer alone is refused by a user-space device only, for its zero port.
fn refused() {
    run(async {
        let mut node = Node::new();
        let keys: Vec<PublicKey> = (0..100).map(|n| node.add_peer(n)).collect();
        let steps = plan(&node.desired, node.host.observe(Scope::ALL).await.unwrap()).steps;
        let peers: Vec<Step> = steps.into_iter().filter(|step| matches!(step, Step::SetPeer(_))).collect();
        let failed = node.host.apply_all(&peers).await;
        assert_eq!(failed.len(), keys.len());
        assert!(words(&failed).contains("the link is gone"), "{}", words(&failed));
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        sh("ip link delete wgo0");
        let failed = node.host.apply_all(&peers).await;
        let user_space = !failed.is_empty(); // the library makes a kernel device again; the resync finds it
        assert!(!user_space || failed.len() == keys.len(), "{}", words(&failed));
        node.converge(Scope::ALL).await;
        node.assert_converged().await;
    });
}

fn key() {
    run(async {
        let mut node = Node::new();
        assert!(node.host.device_private_key().await.unwrap().is_none());
        node.converge(Scope::ALL).await;
        let mut restarted = Host::open(config()).unwrap();
        let key = restarted.device_private_key().await.unwrap().unwrap();
        assert_eq!(key.public_key(), node.desired.device.public_key);
        restarted.set_private_keys(vec![key]);
        assert!(plan(&node.desired, restarted.observed()).steps.is_empty(), "a restart changes nothing");
    });
}

fn wrong_key() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let wanted = PrivateKey::generate().public_key();
        let error = node.host.apply(&Step::SetKey(Link::Device, wanted)).await.unwrap_err();
        assert!(
            matches!(&error, StepError::WrongKey { wanted: w, held } if *w == wanted && *held == [node.desired.device.public_key])
        );
        assert!(!error.is_retryable());
        node.assert_converged().await;
    });
}

fn port() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let socket = UdpSocket::bind("0.0.0.0:51999").unwrap();
        let error = node.host.apply(&Step::SetListenPort(Link::Device, 51999)).await.unwrap_err();
        let holder = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert!(error.to_string().contains("51999") && error.to_string().contains(holder.trim()), "{error}");
        drop(socket);
        // wireguard-go closes its socket of before in its own time.
        let again =
            async { while node.host.apply(&Step::SetListenPort(Link::Device, 51999)).await.is_err() {} };
        tokio::time::timeout(PATIENCE, again).await.unwrap();
        node.converge(Scope::WIREGUARD).await;
        node.assert_converged().await;
        if node.host.observed().device.as_ref().unwrap().implementation == Implementation::Kernel {
            sh("ip link add other type wireguard; wg set other listen-port 51998; ip link set other up");
            let error = node.host.apply(&Step::SetListenPort(Link::Device, 51998)).await.unwrap_err();
            assert!(error.to_string().contains("the WireGuard device other"), "{error}");
        }
    });
}

fn preshared() {
    run(async {
        let mut node = Node::new();
        let key = node.add_peer(1);
        node.converge(Scope::ALL).await;
        sh(&format!("wg genpsk > /run/psk; wg set wgo0 peer {key} preshared-key /run/psk"));
        let plan = node.converge(Scope::WIREGUARD).await;
        assert!(
            matches!(&plan.steps[..], [Step::SetPeer(PeerChange { clear_preshared_key: true, .. })]),
            "{plan}"
        );
        node.assert_converged().await;
        assert!(!node.host.observe(Scope::WIREGUARD).await.unwrap().peers[&key].preshared_key);
    });
}

fn drift() {
    run(async {
        let mut node = Node::new();
        let keys: Vec<PublicKey> = (0..10).map(|n| node.add_peer(n)).collect();
        node.converge(Scope::ALL).await;
        let stranger = PrivateKey::generate().public_key();
        sh(&format!(
            "wg set wgo0 peer {} remove; wg set wgo0 peer {} allowed-ips 10.99.0.0/24 endpoint 192.0.2.99:9;
             wg set wgo0 peer {stranger} allowed-ips 10.98.0.0/24; wg set wgo0 listen-port 51999",
            keys[0], keys[1]
        ));
        assert!(
            plan(&node.desired, node.host.observe(Scope::NETWORK).await.unwrap()).steps.is_empty(),
            "no event tells"
        );
        let plan = node.converge(Scope::WIREGUARD).await;
        assert!(plan.steps.len() >= 4, "{plan}");
        node.assert_converged().await;
    });
}
