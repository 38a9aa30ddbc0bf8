//! A second device beside the first, as while a key rotates.

use std::{collections::BTreeMap, os::unix::net::UnixStream};

use wg_overlay_host::{Change, PrivateKey, Scope};
use wg_overlay_mesh::{
    DesiredDevice, DesiredNext, Implementation, Link, ObservedRoute, Pair, Rotation, Step, next_port,
};

use crate::{
    Test,
    lab::{Node, PATIENCE, PORT, expect, net, prefix4, prefix6, route, run, sh, words},
};

pub const TESTS: &[Test] = &[
    ("a_second_device_comes_beside_the_first_and_goes", comes_and_goes),
    ("routes_move_between_the_devices", routes),
    ("a_new_key_takes_its_devices_peers_along", new_key),
    ("a_second_device_that_somebody_deletes_is_made_again", deleted),
    ("a_strangers_link_in_the_second_devices_place_is_no_affair_of_the_first", stranger),
];

/// Gives the node a second key, and wants the second device with each peer of the first.
fn rotate(node: &mut Node, home: PrivateKey) -> PrivateKey {
    let key = PrivateKey::generate();
    node.host.set_private_keys(vec![home, key.clone()]);
    let device = DesiredDevice {
        public_key: key.public_key(),
        listen_port: next_port(PORT),
        ..node.desired.device.clone()
    };
    let mut next = DesiredNext { device, peers: BTreeMap::new(), pairs: BTreeMap::new() };
    for (home, peer) in &node.desired.peers {
        let key = PrivateKey::generate().public_key();
        next.peers.insert(key, peer.clone());
        next.pairs.insert(key, Pair { home: *home, rotation: Rotation::Away, peer: None });
    }
    node.desired.next = Some(next);
    key
}

async fn rotating() -> Node {
    let mut node = Node::new();
    for n in 0..3 {
        node.add_peer(n);
    }
    node.converge(Scope::ALL).await;
    let home = node.host.device_private_key().await.unwrap().unwrap();
    rotate(&mut node, home);
    node
}

fn wg(what: &str) -> String {
    sh(&format!("wg show {what}")).trim().to_owned()
}

fn rp_filter(link: &str) -> String {
    sh(&format!("cat /proc/sys/net/ipv4/conf/{link}/rp_filter")).trim().to_owned()
}

fn comes_and_goes() {
    run(async {
        let mut node = rotating().await;
        node.host.take_changed_peers();
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        let next = node.desired.next.clone().unwrap();
        let changed: Vec<_> = node.host.take_changed_peers().into_iter().collect();
        assert_eq!(
            changed,
            next.peers.keys().copied().collect::<Vec<_>>(),
            "the first one's peers are the same"
        );
        assert_eq!(wg("wgo1 public-key"), next.device.public_key.to_string());
        assert_eq!(wg("wgo1 listen-port"), next_port(PORT).to_string());
        assert_eq!(wg("wgo1 peers").lines().count(), 3);
        assert_eq!(wg("wgo0 public-key"), node.desired.device.public_key.to_string());
        assert_eq!((rp_filter("wgo0"), rp_filter("wgo1")), ("2".to_owned(), "2".to_owned()));
        let user_space =
            node.host.observed().next.as_ref().unwrap().device.implementation == Implementation::UserSpace;
        assert_eq!(std::fs::exists("/run/wg-overlay/device-wgo1.log").unwrap(), user_space);

        // One peer fewer on the second, and it is the second's alone.
        let next = node.desired.next.as_mut().unwrap();
        let (gone, _) = next.peers.pop_first().unwrap();
        next.pairs.remove(&gone);
        let plan = node.converge(Scope::NONE).await;
        assert_eq!(plan.steps, [Step::RemovePeer(Link::Next, gone)]);
        node.assert_converged().await;

        node.desired.next = None;
        let plan = node.converge(Scope::NONE).await;
        assert_eq!(plan.steps, [Step::DeleteLink(Link::Next)]);
        assert!(node.host.is_stale(), "its address has taken its routes' source along in some kernels");
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        assert_eq!(sh("ip -o link | grep -c wgo1 || true").trim(), "0");
        assert_eq!(wg("wgo0 peers").lines().count(), 3);
    });
}

fn routes() {
    run(async {
        let mut node = rotating().await;
        node.converge(Scope::NONE).await;
        let all = [prefix4(1), prefix6(1), prefix4(2), prefix6(2)];
        for (link, device) in [(Link::Next, "wgo1"), (Link::Device, "wgo0"), (Link::Next, "wgo1")] {
            let steps: Vec<Step> = all.iter().map(|net| Step::SetRoute(*net, route(net), link)).collect();
            let failed = node.host.apply_all(&steps).await;
            assert!(failed.is_empty(), "{}", words(&failed));
            for net in all {
                let family = if net.addr().is_ipv4() { 4 } else { 6 };
                let found = sh(&format!("ip -{family} route show {net} proto 87"));
                assert!(found.lines().count() == 1 && found.contains(&format!("dev {device} ")), "{found}");
            }
            let remembered = node.host.observed().routes.clone();
            assert_eq!(node.host.observe(Scope::NETWORK).await.unwrap().routes, remembered);
            assert!(
                matches!(remembered[&all[0]], ObservedRoute { through: Some(found), .. } if found == link)
            );
        }
        // With the link they are gone, as remembered and as read.
        node.host.apply(&Step::DeleteLink(Link::Next)).await.unwrap();
        assert!(all.iter().all(|net| !node.host.observed().routes.contains_key(net)));
        node.desired.next = None;
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn new_key() {
    run(async {
        let mut node = rotating().await;
        node.converge(Scope::NONE).await;
        let next = node.desired.next.as_ref().unwrap().device.public_key;
        node.host.apply(&Step::SetKey(Link::Device, next)).await.unwrap();
        assert!(node.host.observed().peers.is_empty() && wg("wgo0 peers").is_empty());
        assert_eq!(wg("wgo1 peers").lines().count(), 3, "the other device's stay");
        // Their peers come back with the key, and in one plan where it holds both.
        node.desired.device.public_key = next;
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        let home = PrivateKey::generate();
        node.desired.device.public_key = home.public_key();
        node.host.set_private_keys(vec![home]);
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        assert_eq!(wg("wgo0 peers").lines().count(), 3);
    });
}

fn deleted() {
    run(async {
        let mut node = rotating().await;
        node.converge(Scope::NONE).await;
        let mut events = node.host.events().unwrap();
        sh("ip link del wgo1");
        expect(&mut events, Change::Network).await;
        // A user-space device's process ends a moment after its link.
        let ended = async { while UnixStream::connect("/var/run/wireguard/wgo1.sock").is_ok() {} };
        tokio::time::timeout(PATIENCE, ended).await.unwrap();
        assert!(node.host.observe(Scope::NETWORK).await.unwrap().next.is_none());
        node.converge(Scope::NONE).await;
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        assert_eq!(wg("wgo1 peers").lines().count(), 3);
    });
}

fn stranger() {
    run(async {
        let mut node = Node::new();
        sh("ip tuntap add wgo1 mode tun; ip addr add 192.0.2.77/32 dev wgo1; ip link set wgo1 up");
        node.add_peer(1);
        node.converge(Scope::ALL).await;
        assert!(node.host.observed().next.is_none());
        let warnings = node.host.warnings().concat();
        assert!(warnings.contains("the link wgo1 is of kind \"tun\""), "{warnings}");

        let home = node.host.device_private_key().await.unwrap().unwrap();
        rotate(&mut node, home);
        node.add_peer(2);
        let plan = wg_overlay_mesh::plan(&node.desired, node.host.observed());
        let failed = node.host.apply_all(&plan.steps).await;
        assert!(matches!(&failed[..], [(Step::CreateLink(Link::Next), _)]), "{}", words(&failed));
        assert!(words(&failed).contains("wgo1"), "{}", words(&failed));
        assert_eq!(wg("wgo0 peers").lines().count(), 2);
        assert_eq!(sh("ip -br addr show wgo1").matches("192.0.2.77").count(), 1, "it is left alone");

        sh("ip link del wgo1");
        node.host.observe(Scope::NETWORK).await.unwrap();
        assert_eq!(node.host.warnings(), Vec::<String>::new());
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        assert!(node.host.observed().next.as_ref().unwrap().device.addresses.contains(&net("10.244.1.1/32")));
    });
}
