//! Laws of peers that begin anew: who, and what is there afterwards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use model::{
    arbitrary::case,
    cluster::{decided, fresh, key, local, view},
    kernel::{apply_all, assert_holds, converge},
};
use proptest::prelude::*;
use wg_overlay_mesh::{DesiredState, ObservedState, Plan, Step, plan, renewals};

const MINUTE: Duration = Duration::from_secs(60);

/// Five peers, all converged.
fn converged() -> (DesiredState, ObservedState) {
    let mut state = fresh();
    let desired = decided(&local(), &view(1..=5), &state).desired;
    converge(&desired, &mut state);
    (desired, state)
}

fn address(state: &ObservedState, n: u8) -> IpAddr {
    state.peers[&key(n)].endpoint.unwrap().ip()
}

fn renewed(desired: &DesiredState, state: &ObservedState, addresses: &BTreeMap<IpAddr, Duration>) -> Plan {
    Plan { steps: renewals(desired, state, addresses) }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_begins_anew_has_no_session_and_is_as_desired_afterwards(
        case in case(),
        ages in prop::collection::vec(prop::option::of(0u64..400), 16),
        waits in prop::collection::vec(prop::option::of(0u64..300), 16),
    ) {
        let desired = case.desired();
        let mut state = case.observed.clone();
        converge(&desired, &mut state);
        for (peer, age) in state.peers.values_mut().zip(ages) {
            peer.handshake_age = age.map(Duration::from_secs);
        }
        converge(&desired, &mut state);
        let mut waiting = BTreeMap::new();
        for (peer, wait) in state.peers.values().zip(waits) {
            if let (Some(endpoint), Some(wait)) = (peer.endpoint, wait) {
                waiting.insert(endpoint.ip().to_canonical(), Duration::from_secs(wait));
            }
        }
        let renewed = renewed(&desired, &state, &waiting);
        let due = |peer: &wg_overlay_mesh::ObservedPeer| {
            let waits = peer.endpoint.and_then(|e| waiting.get(&e.ip().to_canonical()));
            peer.handshake_age.is_none_or(|age| age >= 3 * MINUTE) && waits.is_some_and(|wait| *wait >= MINUTE)
        };
        let wanted: Vec<_> = state.peers.iter().filter(|(_, peer)| due(peer)).map(|(key, _)| *key).collect();
        let touched: Vec<_> = renewed.steps.iter().map(|step| match step {
            Step::SetPeer(change) => change.public_key,
            other => panic!("{other}"),
        }).collect();
        prop_assert_eq!(touched, wanted);
        let before = state.clone();
        apply_all(&renewed, &mut state);
        assert_holds(&state, &desired, &before);
        prop_assert_eq!(plan(&desired, &state), Plan::default());
    }
}

#[test]
fn it_is_that_peer_only_and_the_plan_says_so() {
    let (desired, mut state) = converged();
    state.peers.get_mut(&key(2)).unwrap().handshake_age = Some(Duration::from_secs(9));
    let waiting =
        [(2, 200), (3, 59), (4, 60)].map(|(n, wait)| (address(&state, n), Duration::from_secs(wait)));
    let plan = renewed(&desired, &state, &waiting.into());
    let text = plan.to_string();
    assert!(text.starts_with("renew peer worker-4 (") && text.contains(", allowed IPs +"), "{text}");
    assert_eq!(plan.steps.len(), 1, "{text}");
    assert_eq!(renewals(&desired, &state, &BTreeMap::new()), []);
}

#[test]
fn a_peer_whose_name_has_no_answer_keeps_its_endpoint() {
    let (mut desired, state) = converged();
    let waiting = BTreeMap::from([(address(&state, 4), MINUTE)]);
    desired.peers.get_mut(&key(4)).unwrap().endpoint = None;
    let Some(Step::SetPeer(change)) = renewals(&desired, &state, &waiting).pop() else { panic!("no step") };
    assert_eq!(change.endpoint, state.peers[&key(4)].endpoint);
}
