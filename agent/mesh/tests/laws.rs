//! Laws of a plan, from any observed state to any desired one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use model::{
    arbitrary::{Case, case},
    cluster::{decided, fresh, ip, local, name, node, set, set_key, view},
    kernel::{Sender, apply_all, assert_holds, converge, delete_link, leaks, link_down, states, wireguard},
};
use proptest::prelude::*;
use wg_overlay_mesh::{
    DesiredState, HostChainState, Link, ObservedState, Plan, PublicKey, Step, annotation, cleanup, plan,
    ruleset,
};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_kernel_becomes_as_desired_and_then_stays(case in case()) {
        let desired = case.desired();
        let mut state = case.observed.clone();
        converge(&desired, &mut state);
        assert_holds(&state, &desired, &case.observed);
        prop_assert_eq!(plan(&desired, &state), Plan::default());
    }

    #[test]
    fn a_decision_holds_once_it_is_carried_out(case in case(), restart: bool) {
        let Case { mut local, view, observed: mut state } = case;
        // a claim may wait for one that is refused to lose its prefix
        for _ in 0..3 {
            let decision = decided(&local, &view, &state);
            converge(&decision.desired, &mut state);
            local.holders = decision.holders;
        }
        let before = decided(&local, &view, &state);
        if restart {
            local.holders.clear();
        }
        let after = decided(&local, &view, &state);
        prop_assert_eq!(before.desired, after.desired);
        prop_assert_eq!(before.refusals, after.refusals);
    }

    #[test]
    fn the_order_of_a_nodes_pod_cidrs_changes_nothing(case in case()) {
        let mut turned = case.clone();
        turned.view.values_mut().for_each(|record| record.pod_cidrs.reverse());
        prop_assert_eq!(turned.desired(), case.desired());
    }

    #[test]
    fn steps_come_by_phase(case in case()) {
        for plan in [plan(&case.desired(), &case.observed), cleanup(&case.observed)] {
            prop_assert!(plan.steps.iter().map(Step::phase).is_sorted(), "{plan}");
        }
    }

    #[test]
    fn only_what_is_ours_is_touched(case in case()) {
        let desired = case.desired();
        for plan in [plan(&desired, &case.observed), cleanup(&case.observed)] {
            for step in &plan.steps {
                prop_assert!(is_ours(step, &desired, &case.observed), "{step}");
            }
        }
    }

    #[test]
    fn a_crash_between_any_two_steps_is_recovered(case in case()) {
        let desired = case.desired();
        for stopped in states(&plan(&desired, &case.observed), &case.observed) {
            let mut state = stopped.clone();
            converge(&desired, &mut state);
            assert_holds(&state, &desired, &stopped);
        }
    }

    /// What does not leave unencrypted before a step doesn't after it, and nothing does once the guards stand:
    /// so a start without guards is never made worse, and a start with them never leaks.
    #[test]
    fn no_step_opens_a_plaintext_window(mut case in case()) {
        case.local.settings.fail_closed = true;
        let desired = case.desired();
        let plan = plan(&desired, &case.observed);
        let states = states(&plan, &case.observed);
        let guard = ruleset(&desired.firewall);
        for to in probes(&desired) {
            for sender in [Sender::Pod, Sender::Node] {
                let leaking = states.iter().map(|s| leaks(sender, to, &guard, s)).collect::<Vec<_>>();
                prop_assert!(leaking.is_sorted_by(|before, after| before >= after), "{to} {sender:?}\n{plan}");
                let guards = plan.steps.iter().take_while(|s| is_guard(s)).count();
                prop_assert!(sender == Sender::Node || !leaking[guards], "{to} after the guards\n{plan}");
                prop_assert!(!leaking[leaking.len() - 1], "{to} in the end\n{plan}");
            }
        }
    }

    #[test]
    fn a_prefix_that_moves_always_has_an_owner(case in case()) {
        let desired = case.desired();
        let plan = plan(&desired, &case.observed);
        let states = states(&plan, &case.observed);
        for link in [Link::Device, Link::Next] {
            // a new key takes the device's peers along
            if !keeps_peers(link, &desired, &case.observed) || (link == Link::Next && desired.next.is_none()) {
                continue;
            }
            let peers = match (link, &desired.next) {
                (Link::Next, Some(next)) => &next.peers,
                _ => &desired.peers,
            };
            let wanted = peers.values().flat_map(|p| &p.allowed_ips).copied().collect::<BTreeSet<_>>();
            let kept = &owned(link, &case.observed) & &wanted;
            for state in &states {
                prop_assert!(kept.is_subset(&owned(link, state)), "{link}\n{plan}");
            }
            for (step, before) in plan.steps.iter().zip(&states) {
                let Step::SetPeer(change) = step else { continue };
                let Some(all) = change.replace_allowed_ips.as_ref().filter(|_| change.device == link) else { continue };
                let mut before = before.clone();
                let (_, peers) = wireguard(link, &mut before).unwrap();
                let goes = &peers[&change.public_key].allowed_ips.to_set() - all;
                prop_assert!(!goes.is_empty(), "{step}: the new owners had taken all of it");
                prop_assert!(!goes.iter().any(|net| wanted.contains(net)), "{step} loses what another gets");
            }
        }
    }

    /// Where the table or the unreachable routes stand, nothing leaks before the last link is gone.
    #[test]
    fn cleanup_leaves_nothing_of_ours_and_takes_the_guards_last(mut case in case()) {
        case.local.settings.fail_closed = true;
        let desired = case.desired();
        let guard = ruleset(&desired.firewall);
        let plan = cleanup(&case.observed);
        let states = states(&plan, &case.observed);
        let has_rules = case.observed.firewall.as_ref().is_some_and(|f| f.ruleset == guard);
        let guarded = has_rules || desired.unreachable.is_subset(&case.observed.unreachable);
        for to in probes(&desired).into_iter().filter(|_| guarded) {
            let leaking = states.iter().map(|s| leaks(Sender::Pod, to, &guard, s)).collect::<Vec<_>>();
            prop_assert!(leaking.is_sorted_by(|before, after| before >= after), "{to}\n{plan}");
        }
        // our rules in a chain that drops may be those of an earlier port: they are taken out as well
        for chain in case.observed.host_chains.keys() {
            prop_assert!(plan.steps.contains(&Step::LeaveHostChain(chain.clone())), "{chain}");
        }
        let first_guard = plan.steps.iter().position(removes_guard).unwrap_or(plan.steps.len());
        prop_assert!(plan.steps[first_guard..].iter().all(removes_guard), "\n{plan}");
        for mut state in states {
            apply_all(&cleanup(&state), &mut state);
            assert_clean(&state);
        }
    }

    #[test]
    fn a_peer_that_stays_the_same_gets_no_step(n in 2..=9u8, change in 0..8usize, ages in any::<[bool; 10]>()) {
        let mut local = local();
        let mut state = fresh();
        let mut nodes = view(1..=9);
        let decision = decided(&local, &nodes, &state);
        converge(&decision.desired, &mut state);
        local.holders = decision.holders;
        for (peer, fresh) in state.peers.values_mut().zip(ages) {
            // some roamed, and are reached there
            peer.handshake_age = fresh.then_some(std::time::Duration::from_secs(9));
            peer.endpoint = if fresh { Some("198.51.100.1:1024".parse().unwrap()) } else { peer.endpoint };
        }
        change_node(change, n, nodes.entry(name(n)).or_default());
        if change == 0 {
            nodes.remove(&name(n));
        }
        let plan = plan(&decided(&local, &nodes, &state).desired, &state);
        prop_assert!(!plan.steps.is_empty());
        let touched = [model::cluster::key(n), model::cluster::key(100)];
        let prefixes = [model::cluster::v4(n), model::cluster::v6(n), model::cluster::v4(100)];
        for step in &plan.steps {
            let related = match step {
                Step::SetPeer(change) => touched.contains(&change.public_key),
                Step::RemovePeer(_, key) => touched.contains(key),
                Step::SetRoute(net, ..) | Step::RemoveRoute(net) => prefixes.contains(net),
                step => is_guard(step),
            };
            prop_assert!(related, "{step}, when worker-{n} alone changed ({change})");
        }
    }
}

#[test]
fn what_a_link_takes_along_is_put_back_and_the_peers_are_left_alone() {
    let mut state = fresh();
    let desired = decided(&local(), &view(1..=5), &state).desired;
    converge(&desired, &mut state);
    for link in [Link::Device, Link::Bridge] {
        let mut hurt = state.clone();
        link_down(link, &mut hurt);
        let plan = plan(&desired, &hurt);
        let peers =
            plan.steps.iter().filter(|s| matches!(s, Step::SetPeer(_) | Step::RemovePeer(..))).count();
        assert_eq!(peers, 0, "\n{plan}");
        apply_all(&plan, &mut hurt);
        assert_holds(&hurt, &desired, &state);

        let mut hurt = state.clone();
        delete_link(link, &mut hurt);
        converge(&desired, &mut hurt);
        assert_holds(&hurt, &desired, &hurt);
    }
}

/// The ways in which one Node changes; 0 is that it leaves.
fn change_node(change: usize, n: u8, record: &mut wg_overlay_mesh::NodeRecord) {
    match change {
        1 => record.internal_ips = vec!["192.0.2.200".to_owned()],
        2 => set_key(record, model::cluster::key(100)),
        3 => set(record, annotation::LISTEN_PORT, "51999"),
        4 => set(record, annotation::MTU, "1300"),
        5 => {
            *record = node(n);
            record.pod_cidrs = vec![model::cluster::v4(100).to_string(), model::cluster::v6(n).to_string()];
            record.annotations.remove(annotation::OVERLAY_IPS);
        }
        6 => set(record, annotation::ENDPOINT, "203.0.113.7:4000"),
        _ => set(record, annotation::PERSISTENT_KEEPALIVE, "15"),
    }
}

fn is_guard(step: &Step) -> bool {
    matches!(
        step,
        Step::SetFirewall { .. } | Step::SetPortGuard | Step::GuardEndpoints { .. } | Step::AddUnreachable(_)
    )
}

fn removes_guard(step: &Step) -> bool {
    matches!(step, Step::RemoveUnreachable(_) | Step::RemovePortGuard | Step::RemoveFirewall)
}

/// An address in each node's prefix, and in one that nobody has.
fn probes(desired: &DesiredState) -> Vec<IpAddr> {
    let nodes = (1..=11).flat_map(|n| [format!("10.244.{n}.9"), format!("fd00:244:0:{n:x}::9")]);
    let all = nodes.map(|text| ip(&text));
    all.filter(|ip| desired.unreachable.iter().any(|net| net.contains(ip))).collect()
}

fn owned(link: Link, state: &ObservedState) -> BTreeSet<IpNet> {
    let mut state = state.clone();
    let peers = wireguard(link, &mut state).into_iter().flat_map(|(_, peers)| peers.values());
    peers.flat_map(|p| p.allowed_ips.iter().copied()).collect()
}

fn is_ours(step: &Step, desired: &DesiredState, observed: &ObservedState) -> bool {
    let peer = |link: Link, key: &PublicKey| match link {
        Link::Next => observed.next.as_ref().is_some_and(|next| next.peers.contains_key(key)),
        _ => observed.peers.contains_key(key),
    };
    let wanted = |link: Link, key: &PublicKey| match link {
        Link::Next => desired.next.as_ref().is_some_and(|next| next.peers.contains_key(key)),
        _ => desired.peers.contains_key(key),
    };
    let addresses = |link: Link| match link {
        Link::Device => observed.device.as_ref().map(|d| &d.addresses),
        Link::Next => observed.next.as_ref().map(|next| &next.device.addresses),
        Link::Bridge => observed.bridge.as_ref().map(|b| &b.addresses),
    };
    match step {
        Step::SetFirewall { .. } | Step::GuardEndpoints { .. } | Step::RemoveFirewall => true,
        Step::SetPortGuard | Step::RemovePortGuard => true,
        Step::CreateLink(_) | Step::MarkLink(_) | Step::SetBridgeNetfilter | Step::SetMtu(..) => true,
        Step::SetKey(..) | Step::SetListenPort(..) | Step::SetUp(_) | Step::DeleteLink(_) => true,
        Step::AddUnreachable(net) => desired.unreachable.contains(net) && !observed.unreachable.contains(net),
        Step::RemoveUnreachable(net) => observed.unreachable.contains(net),
        Step::AllowInHostChain { chain, .. } => observed.host_chains[chain] == HostChainState::Drops,
        Step::LeaveHostChain(chain) => observed.host_chains.contains_key(chain),
        Step::AddAddress(_, net) => {
            let of_bridge = desired.bridge.addresses.contains(net) || observed.addresses_in_use.contains(net);
            of_bridge || desired.device.addresses.contains(net)
        }
        Step::RemoveAddress(link, net) => addresses(*link).is_some_and(|a| a.contains(net)),
        Step::SetPeer(change) => {
            let (link, key) = (change.device, &change.public_key);
            wanted(link, key) && change.add != (peer(link, key) && keeps_peers(link, desired, observed))
        }
        Step::RemovePeer(link, key) => peer(*link, key) && !wanted(*link, key),
        Step::SetRoute(net, route, _) => desired.routes.get(net) == Some(route),
        Step::RemoveRoute(net) => observed.routes.contains_key(net),
    }
}

/// Whether a device has the key that it shall have: another takes its peers along.
fn keeps_peers(link: Link, desired: &DesiredState, observed: &ObservedState) -> bool {
    let next =
        || (observed.next.as_ref().map(|next| &next.device), desired.next.as_ref().map(|next| &next.device));
    let (found, wanted) = match link {
        Link::Next => next(),
        _ => (observed.device.as_ref(), Some(&desired.device)),
    };
    found.and_then(|device| device.public_key) == wanted.map(|device| device.public_key)
}

fn assert_clean(state: &ObservedState) {
    assert!(
        state.device.is_none() && state.next.is_none() && state.bridge.is_none() && state.firewall.is_none()
    );
    assert_eq!(state.port_guard, None);
    assert!(state.unreachable.is_empty() && state.peers.is_empty() && state.routes.is_empty());
    assert!(state.host_chains.values().all(|s| *s == HostChainState::Drops));
    assert_eq!(state.underlay, fresh().underlay);
}

#[test]
fn the_probes_leak_where_nothing_guards_them() {
    let desired = decided(&local(), &view([1]), &fresh()).desired;
    let mut state = fresh();
    converge(&desired, &mut state);
    (state.firewall, state.unreachable) = (None, BTreeSet::new());
    let guard = ruleset(&desired.firewall);
    let leaking = probes(&desired).into_iter().filter(|to| leaks(Sender::Pod, *to, &guard, &state)).count();
    assert_eq!(leaking, 20, "all but this node's own");
}
