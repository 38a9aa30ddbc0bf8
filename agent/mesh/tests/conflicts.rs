//! Laws of conflicting claims: whatever a hostile Node says, nobody else's prefix moves.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use std::net::SocketAddr;

use ipnet::IpNet;
use model::{
    cluster::{decided, fresh, key, local, name, net, node, set, set_key, v4, v6, view},
    kernel::{assert_holds, converge},
};
use proptest::{prelude::*, sample::subsequence};
use wg_overlay_mesh::{
    ClusterView, Decision, DesiredState, Local, NodeRecord, ObservedState, PublicKey, Reason, annotation,
};

const HOSTILE: &str = "hostile";

/// What a hostile Node may copy from its victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    Key,
    CidrV4,
    CidrV6,
    PartOfCidr,
    OverlayIp,
    AddressInCidr,
    InternalIp,
    Endpoint,
    EndpointElsewhere,
    AddressesEverywhere,
}

use Lie::*;
const LIES: [Lie; 10] = [
    Key,
    CidrV4,
    CidrV6,
    PartOfCidr,
    OverlayIp,
    AddressInCidr,
    InternalIp,
    Endpoint,
    EndpointElsewhere,
    AddressesEverywhere,
];

fn hostile(victim: u8, created: i64, lies: &[Lie]) -> NodeRecord {
    let mut record = node(200);
    record.created = created;
    record.annotations.remove(annotation::OVERLAY_IPS);
    for lie in lies {
        match lie {
            Key => set_key(&mut record, key(victim)),
            CidrV4 => record.pod_cidrs[0] = v4(victim).to_string(),
            CidrV6 => record.pod_cidrs[1] = v6(victim).to_string(),
            PartOfCidr => record.pod_cidrs.push(format!("10.244.{victim}.128/25")),
            OverlayIp => set(&mut record, annotation::OVERLAY_IPS, format!("10.244.{victim}.1")),
            AddressInCidr => record.internal_ips.insert(0, format!("10.244.{victim}.7")),
            InternalIp => record.internal_ips = node(victim).internal_ips,
            Endpoint => set(&mut record, annotation::ENDPOINT, format!("192.0.2.{victim}:51820")),
            EndpointElsewhere => set(&mut record, annotation::ENDPOINT, "203.0.113.66:51820"),
            AddressesEverywhere => {
                record.internal_ips.extend((0..=255).map(|n| format!("10.244.{n}.7")));
            }
        }
    }
    record
}

/// One node's prefixes with the key and endpoint they lead to.
fn holdings(desired: &DesiredState, n: u8) -> Vec<(IpNet, PublicKey, Option<SocketAddr>)> {
    let peers =
        desired.peers.iter().flat_map(|(k, p)| p.allowed_ips.iter().map(move |net| (*net, *k, p.endpoint)));
    let within = |net: &IpNet| v4(n).contains(net) || v6(n).contains(net) || net.contains(&v4(n));
    peers.filter(|(net, ..)| within(net)).map(|(net, k, e)| (net, k, e.map(|(e, _)| e))).collect()
}

/// What an honest node holds once it is programmed.
fn due(n: u8) -> Vec<(IpNet, PublicKey, Option<SocketAddr>)> {
    let endpoint = format!("192.0.2.{n}:51820").parse().ok();
    vec![(v4(n), key(n), endpoint), (v6(n), key(n), endpoint)]
}

/// Decides and carries out; a restarted agent has forgotten who held what, where nothing was written down.
fn turn(local: &mut Local, view: &ClusterView, state: &mut ObservedState, restart: bool) -> Decision {
    if restart {
        local.holders.clear();
        local.key_holders.clear();
    }
    let decision = decided(local, view, state);
    let before = state.clone();
    converge(&decision.desired, state);
    assert_holds(state, &decision.desired, &before);
    local.holders.clone_from(&decision.holders);
    decision
}

/// The kernel has forgotten all, and the agent knows what was written down.
fn reboot(local: &mut Local, state: &mut ObservedState, last: &Decision) {
    *state = fresh();
    local.holders.clear();
    local.key_holders.clear();
    for (node, key, prefixes) in last.titles() {
        local.key_holders.insert(key, node.clone());
        local.holders.extend(prefixes.map(|net| (*net, node.clone())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nodes arrive one by one in any order, a hostile one among them that keeps changing what it says, older or
    /// younger than all; the agent restarts at any time. Who was programmed stays as it was.
    #[test]
    fn nobody_elses_prefix_moves(
        arrivals in Just((2..=6u8).collect::<Vec<_>>()).prop_shuffle(),
        victim in 2..=6u8,
        older: bool,
        lies in proptest::collection::vec(subsequence(LIES.to_vec(), 0..=LIES.len()), 12),
        restarts in any::<[bool; 12]>(),
        stale in any::<[bool; 12]>(),
    ) {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view([1]));
        let created = if older { 0 } else { 5000 };
        let mut programmed: Vec<u8> = Vec::new();
        for (at, lies) in lies.iter().enumerate() {
            let arrived = arrivals.get(at / 2).filter(|_| at % 2 == 0);
            nodes.extend(arrived.map(|n| (name(*n), node(*n))));
            if at > 0 {
                nodes.insert(HOSTILE.to_owned(), hostile(victim, created, lies));
            }
            for peer in state.peers.values_mut() {
                peer.handshake_age = Some(std::time::Duration::from_secs(if stale[at] { 999 } else { 9 }));
            }
            let desired = turn(&mut local, &nodes, &mut state, restarts[at]).desired;
            for n in &programmed {
                prop_assert_eq!(holdings(&desired, *n), due(*n), "worker-{} after {:?}", n, lies);
            }
            let honest = |n: &&u8| nodes.contains_key(&name(**n)) && holdings(&desired, **n) == due(**n);
            programmed = arrivals.iter().filter(honest).copied().collect();
        }
    }

    /// The same where the whole node is rebooted at any time, and nothing but what was written down is left.
    #[test]
    fn nobody_elses_prefix_moves_across_reboots(
        arrivals in Just((2..=6u8).collect::<Vec<_>>()).prop_shuffle(),
        victim in 2..=6u8,
        older: bool,
        lies in proptest::collection::vec(subsequence(LIES.to_vec(), 0..=LIES.len()), 12),
        reboots in any::<[bool; 12]>(),
    ) {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view([1]));
        let created = if older { 0 } else { 5000 };
        let mut programmed: Vec<u8> = Vec::new();
        for (at, lies) in lies.iter().enumerate() {
            let arrived = arrivals.get(at / 2).filter(|_| at % 2 == 0);
            nodes.extend(arrived.map(|n| (name(*n), node(*n))));
            if at > 0 {
                nodes.insert(HOSTILE.to_owned(), hostile(victim, created, lies));
            }
            let decision = turn(&mut local, &nodes, &mut state, false);
            for n in &programmed {
                prop_assert_eq!(holdings(&decision.desired, *n), due(*n), "worker-{} after {:?}", n, lies);
            }
            // who copies all before the victim is there is told from it by nobody, and gets no title
            let titles: Vec<_> = decision.titles().map(|(node, ..)| node.to_string()).collect();
            let honest = |n: &&u8| titles.contains(&name(**n)) && holdings(&decision.desired, **n) == due(**n);
            programmed = arrivals.iter().filter(honest).copied().collect();
            if reboots[at] {
                reboot(&mut local, &mut state, &decision);
            }
        }
    }

    /// A hostile Node that is younger keeps nobody out, whatever it says, even where nothing is programmed yet.
    #[test]
    fn where_all_are_new_a_younger_liar_moves_nothing(
        victim in 2..=6u8,
        lies in subsequence(LIES[1..].to_vec(), 0..LIES.len()),
    ) {
        let honest = decided(&local(), &view(1..=6), &fresh());
        let mut nodes = view(1..=6);
        nodes.insert(HOSTILE.to_owned(), hostile(victim, 5000, &lies));
        let decision = decided(&local(), &nodes, &fresh());
        for n in 2..=6 {
            prop_assert_eq!(holdings(&decision.desired, n), holdings(&honest.desired, n), "{:?}", lies);
        }
    }
}

#[test]
fn of_two_new_claims_the_older_node_has_the_prefix() {
    for (first, second) in [(2, 3), (3, 2)] {
        let mut nodes = view(1..=3);
        for n in [first, second] {
            let record = nodes.get_mut(&name(n)).unwrap();
            record.pod_cidrs = vec![v4(9).to_string()];
            record.annotations.remove(annotation::OVERLAY_IPS);
        }
        nodes.get_mut(&name(first)).unwrap().created = 7;
        let decision = decided(&local(), &nodes, &fresh());
        assert_eq!(decision.desired.peers[&key(first)].allowed_ips, [v4(9)].into());
        let reason = &decision.refusals[&name(second)].reason;
        assert_eq!(reason, &Reason::DuplicatePodCidr(v4(9), name(first)));
    }
}

#[test]
fn a_doubled_key_that_nobody_is_programmed_with_stays_refused() {
    let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=4));
    set_key(nodes.get_mut(&name(3)).unwrap(), key(2));
    for restart in [false, false, true] {
        let decision = turn(&mut local, &nodes, &mut state, restart);
        for n in [2, 3] {
            assert_eq!(decision.refusals[&name(n)].reason, Reason::DuplicateKey { holder: None });
        }
        assert_eq!(decision.desired.peers.keys().collect::<Vec<_>>(), [&key(4)]);
    }
}

#[test]
fn a_doubled_key_stays_with_the_node_that_is_programmed_with_it() {
    for restart in [false, true] {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
        turn(&mut local, &nodes, &mut state, false);
        nodes.insert(HOSTILE.to_owned(), hostile(2, 0, &[Key]));
        let decision = turn(&mut local, &nodes, &mut state, restart);
        assert_eq!(decision.refusals[HOSTILE].reason, Reason::DuplicateKey { holder: Some(name(2)) });
        assert_eq!(*decision.desired.peers[&key(2)].node, *name(2));
    }
}

#[test]
fn a_key_and_prefixes_that_are_written_down_stay_after_a_reboot() {
    for lies in [&[Key][..], &[CidrV4], &[PartOfCidr], &[Key, CidrV4, CidrV6, InternalIp]] {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
        let before = turn(&mut local, &nodes, &mut state, false);
        nodes.insert(HOSTILE.to_owned(), hostile(2, 0, lies));
        reboot(&mut local, &mut state, &before);
        for _ in 0..2 {
            let decision = turn(&mut local, &nodes, &mut state, false);
            assert_eq!(decision.refusals.keys().collect::<Vec<_>>(), [HOSTILE], "{lies:?}");
            assert_eq!(holdings(&decision.desired, 2), due(2), "{lies:?}");
        }
    }
}

#[test]
fn a_key_whose_holder_is_written_down_and_gone_is_anothers() {
    let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
    let before = turn(&mut local, &nodes, &mut state, false);
    nodes.remove(&name(2));
    nodes.insert(HOSTILE.to_owned(), hostile(2, 9000, &[Key, CidrV4]));
    reboot(&mut local, &mut state, &before);
    let decision = turn(&mut local, &nodes, &mut state, false);
    assert!(decision.refusals.is_empty(), "{:?}", decision.refusals);
    assert!(decision.desired.peers[&key(2)].allowed_ips.contains(&v4(2)));
}

#[test]
fn a_perfect_copy_that_is_older_is_told_from_the_node_that_was_there() {
    let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
    turn(&mut local, &nodes, &mut state, false);
    nodes.insert(HOSTILE.to_owned(), hostile(2, 0, &[Key, CidrV4, CidrV6, InternalIp]));
    let decision = turn(&mut local, &nodes, &mut state, false);
    assert_eq!(decision.refusals[HOSTILE].reason, Reason::DuplicateKey { holder: Some(name(2)) });
    assert_eq!((decision.refusals.len(), &*decision.desired.peers[&key(2)].node), (1, &*name(2)));
}

#[test]
fn an_older_nodes_made_up_address_moves_no_programmed_prefix() {
    for restart in [false, true] {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
        turn(&mut local, &nodes, &mut state, false);
        nodes.insert(HOSTILE.to_owned(), hostile(2, 0, &[AddressInCidr]));
        let decision = turn(&mut local, &nodes, &mut state, restart);
        assert!(!decision.refusals.contains_key(&name(2)), "{:?}", decision.refusals);
        assert_eq!(holdings(&decision.desired, 2), due(2));
    }
}

#[test]
fn a_node_that_rotates_its_key_keeps_its_prefixes() {
    for lies in [&[CidrV4][..], &[Key, CidrV4, CidrV6, InternalIp]] {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
        turn(&mut local, &nodes, &mut state, false);
        nodes.insert(HOSTILE.to_owned(), hostile(2, 0, lies));
        set_key(nodes.get_mut(&name(2)).unwrap(), key(100));
        let decision = turn(&mut local, &nodes, &mut state, false);
        assert_eq!(decision.desired.peers[&key(100)].allowed_ips, [v4(2), v6(2)].into());
        assert_eq!(decision.refusals.keys().collect::<Vec<_>>(), [HOSTILE]);
    }
}

#[test]
fn a_node_made_anew_under_its_name_keeps_its_prefix_with_a_new_key() {
    let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
    turn(&mut local, &nodes, &mut state, false);
    let mut anew = node(2);
    anew.created = 9000;
    set_key(&mut anew, key(100));
    nodes.insert(name(2), anew);
    nodes.insert(HOSTILE.to_owned(), hostile(2, 0, &[CidrV4, CidrV6]));
    let decision = turn(&mut local, &nodes, &mut state, false);
    assert_eq!(state.peers[&key(100)].allowed_ips, [v4(2), v6(2)].into());
    assert!(!state.peers.contains_key(&key(2)), "the old peer is gone");
    assert_eq!(decision.refusals.keys().collect::<Vec<_>>(), [HOSTILE]);
}

#[test]
fn two_hundred_nodes_at_once_are_all_believed_beside_a_liar() {
    let mut nodes = view(1..=199);
    let honest = decided(&local(), &nodes, &fresh());
    assert_eq!((honest.desired.peers.len(), honest.refusals.len()), (198, 0));
    nodes.insert(HOSTILE.to_owned(), hostile(77, 0, &[AddressesEverywhere]));
    let (mut local, mut state) = (local(), fresh());
    let decision = turn(&mut local, &nodes, &mut state, false);
    let peers = decision.desired.peers.iter().filter(|(k, _)| **k != key(200));
    assert!(peers.eq(&honest.desired.peers));
    assert!(decision.desired.firewall.endpoints.len() <= 2 * 199, "addresses of pods are no endpoints");
}

#[test]
fn pods_are_cut_off_from_no_socket_in_the_pod_networks() {
    let mut nodes = view(1..=3);
    nodes.insert(HOSTILE.to_owned(), hostile(2, 0, &[AddressInCidr]));
    let desired = decided(&local(), &nodes, &fresh()).desired;
    let in_a_pod_network = |e: &&SocketAddr| desired.unreachable.iter().any(|net| net.contains(&e.ip()));
    assert_eq!(desired.firewall.endpoints.iter().find(in_a_pod_network), None);
}

#[test]
fn a_conflict_in_a_family_that_this_node_has_no_part_in_counts_for_nothing() {
    let mut nodes = view(1..=3);
    nodes.get_mut(&name(1)).unwrap().pod_cidrs.truncate(1);
    nodes.insert(HOSTILE.to_owned(), hostile(2, 0, &[CidrV6]));
    let decision = decided(&local(), &nodes, &fresh());
    assert!(decision.refusals.is_empty(), "{:?}", decision.refusals);
    assert_eq!(decision.desired.peers[&key(2)].allowed_ips, [v4(2)].into());
}

#[test]
fn an_extra_overlay_address_is_held_like_a_prefix() {
    let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=3));
    local.settings.overlay_cidrs.insert(net("100.64.0.0/24"));
    set(nodes.get_mut(&name(3)).unwrap(), annotation::OVERLAY_IPS, "100.64.0.3");
    turn(&mut local, &nodes, &mut state, false);
    set(nodes.get_mut(&name(2)).unwrap(), annotation::OVERLAY_IPS, "100.64.0.3"); // the older one
    let decision = turn(&mut local, &nodes, &mut state, true);
    let address = "100.64.0.3".parse().unwrap();
    assert_eq!(decision.refusals[&name(2)].reason, Reason::DuplicateOverlayIp(address, name(3)));
    assert!(state.peers[&key(3)].allowed_ips.contains(&net("100.64.0.3/32")));
}
