//! Laws of a key's rotation.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use std::ops::ControlFlow;

use model::{
    arbitrary::{any_rotation, case},
    cluster::{decided, fresh, key, local, name, next, node, set, view},
    kernel::converge,
    simulation::{Event, RULES, Rules, World},
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use wg_overlay_mesh::{
    ClusterView, DesiredState, Link, NodeRecord, ObservedPeer, Plan, Rotation, Step, annotation, plan,
};

/// How a simulation goes: how many nodes and which of them are asked to rotate, how likely each thing is, and the choices.
type Course = (usize, usize, Vec<u32>, Vec<u16>);

fn course() -> impl Strategy<Value = Course> {
    // what is never likely happens when nothing else can: as late as possible
    let likely = prop_oneof![2 => Just(0u32), 2 => Just(1), 1 => Just(6), 1 => Just(40)];
    (2..=4usize, 1..=2usize, vec(likely, 53), vec(any::<u16>(), 0..500))
}

/// Plays a course to its end. The error is what was lost, and what happened until then.
fn play(course: &Course, rules: Rules) -> Result<(), String> {
    let (count, rotating, likely, choices) = course;
    let mut world = World::new(*count, rules, |at, other| likely[at * 4 + other] > 0);
    let told = |world: &World, what: String| format!("{what}\n{}", world.log.join("\n"));
    let weight = |event: &Event| match *event {
        Event::Sees(at) => 20 * likely[at * 4],
        Event::Shakes(at, other, _) => 20 * likely[16 + at * 4 + other],
        Event::Confirms(at, other) => 20 * likely[32 + at * 4 + other],
        Event::Acts(at) => 60 * likely[48 + at],
        Event::Publishes(at) => 20 * likely[48 + at],
        Event::Restarts(_) => likely[52].min(1),
        Event::Asks(at) => {
            if at < *rotating {
                2
            } else {
                0
            }
        }
    };
    for choice in choices {
        let events = world.events();
        let total: u32 = events.iter().map(weight).sum();
        let mut left = u32::from(*choice) % total.max(1);
        let chosen = events.iter().try_for_each(|event| match left.checked_sub(weight(event)) {
            Some(rest) => {
                left = rest;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(*event),
        });
        if let ControlFlow::Break(event) = chosen {
            world.happen(event);
        }
        if let Some(lost) = world.lost() {
            return Err(told(&world, lost));
        }
    }
    for _ in 0..6000 {
        let goes_on = |event: &&Event| match event {
            Event::Asks(at) => at < rotating,
            Event::Restarts(_) => false,
            _ => true,
        };
        let events = world.events();
        // one after another, or the first would never let the others come
        let going: Vec<_> = events.iter().filter(goes_on).copied().collect();
        let Some(event) = going.get(world.log.len() % going.len().max(1)).copied() else {
            return world.unrest().map_or(Ok(()), |unrest| Err(told(&world, unrest)));
        };
        world.happen(event);
        if let Some(lost) = world.lost() {
            return Err(told(&world, lost));
        }
    }
    Err(told(&world, "it never ends".to_owned()))
}

proptest! {
    // a case plays some hundred events, each with decisions and plans
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nodes see each other's writes late, in their order, handshakes come when they come, agents restart between any two
    /// steps: each packet has its way at each moment, and in the end everything is as before but for the keys.
    #[test]
    fn no_packet_is_lost_while_keys_rotate(course in course()) {
        if let Err(told) = play(&course, RULES) {
            prop_assert!(false, "{told}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// While a pair has a session on one device, no route of it is led to the other where there is none.
    #[test]
    fn a_route_is_led_to_where_a_session_is(case in case()) {
        let desired = case.desired();
        let Some(next) = &desired.next else { return Ok(()) };
        let observed = &case.observed;
        let fresh = |peer: &ObservedPeer| peer.handshake_age.is_some_and(|age| age.as_secs() < 180);
        let home = |key| {
            let kept = observed.device.as_ref().and_then(|d| d.public_key) == Some(desired.device.public_key);
            kept && observed.peers.get(key).is_some_and(fresh)
        };
        let away = |key| {
            let found = observed.next.as_ref().filter(|f| f.device.public_key == Some(next.device.public_key));
            found.and_then(|found| found.peers.get(key)).is_some_and(fresh)
        };
        for step in plan(&desired, observed).steps {
            let Step::SetRoute(net, _, link) = step else { continue };
            let Some((key, _)) = next.peers.iter().find(|(_, p)| p.allowed_ips.contains(&net)) else {
                prop_assert_eq!(link, Link::Device);
                continue;
            };
            let (home, away) = (home(&next.pairs[key].home), away(key));
            prop_assert!(if link == Link::Next { away } else { home || !away }, "{net} by {link}");
        }
    }

    #[test]
    fn while_nothing_rotates_no_session_moves_a_route(ages in any::<[bool; 5]>(), own_next: bool) {
        let mut local = local();
        local.next_key = local.next_key.filter(|_| own_next);
        let (nodes, mut state) = (view(1..=6), fresh());
        converge(&decided(&local, &nodes, &state).desired, &mut state);
        for (peer, fresh) in state.peers.values_mut().zip(ages) {
            peer.handshake_age = fresh.then_some(std::time::Duration::ZERO);
        }
        prop_assert_eq!(plan(&decided(&local, &nodes, &state).desired, &state), Plan::default());
    }

    /// Whoever says that another's key is its own next one moves nothing of the other, however old it is, and whoever comes
    /// to say so while the second device holds the other's takes nothing away there either.
    #[test]
    fn a_copied_next_key_moves_nothing_of_the_others(
        victim in 2..=4u8,
        copies_next: bool,
        as_its_key: bool,
        older: bool,
        late: bool,
        restart: bool,
        with_prefixes: bool,
        rotations in (option::of(any_rotation()), option::of(any_rotation()), option::of(any_rotation())),
    ) {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=4));
        local.rotation = rotations.0;
        let says = |record: &mut NodeRecord, rotation: Option<Rotation>| {
            rotation.into_iter().for_each(|r| set(record, annotation::ROTATION, r.to_string()));
        };
        says(nodes.get_mut(&name(victim)).unwrap(), rotations.1);
        let honest = decided(&local, &nodes, &state);
        if late {
            converge(&honest.desired, &mut state);
            if !restart {
                local.holders.clone_from(&honest.holders);
            }
        }
        let mut liar = node(200);
        liar.created = if older { 0 } else { 5000 };
        if with_prefixes && late {
            liar.annotations.remove(annotation::OVERLAY_IPS);
            liar.pod_cidrs.clone_from(&nodes[&name(victim)].pod_cidrs);
        }
        let copied = if copies_next { next(victim) } else { key(victim) };
        let told = if as_its_key && late { annotation::PUBLIC_KEY } else { annotation::NEXT_PUBLIC_KEY };
        set(&mut liar, told, copied.to_string());
        says(&mut liar, rotations.2);
        nodes.insert("liar".to_owned(), liar);
        let decision = decided(&local, &nodes, &state);
        for n in 2..=4 {
            prop_assert!(!decision.refusals.contains_key(&name(n)), "{:?}", decision.refusals);
            let (found, before) = (&decision.desired, &honest.desired);
            prop_assert_eq!(&found.peers[&key(n)].allowed_ips, &before.peers[&key(n)].allowed_ips);
            prop_assert_eq!(&found.peers[&key(n)].node, &before.peers[&key(n)].node);
            let second = |desired: &DesiredState| desired.next.as_ref()?.peers.get(&next(n)).map(|p| p.node.clone());
            let holds = |desired| second(desired).is_some_and(|node| *node == *name(n));
            if late || !older {
                prop_assert_eq!(holds(found), holds(before));
            }
        }
    }

    /// A next key is public long before it is used: whoever takes it for its own key while the second device has it is refused,
    /// then and when the key changes, also where it takes the prefixes along and nobody remembers who held them.
    #[test]
    fn a_key_that_is_being_changed_to_cannot_be_taken(older: bool, restart: bool, with_prefixes: bool) {
        let (mut local, mut state, mut nodes) = (local(), fresh(), view(1..=4));
        let mut liar = node(200);
        liar.created = if older { 0 } else { 5000 };
        liar.annotations.remove(annotation::OVERLAY_IPS);
        nodes.insert("liar".to_owned(), liar);
        let mut says = |nodes: &mut ClusterView, changes: &[(u8, &str, String)]| {
            for (n, what, text) in changes {
                let name = if *n == 200 { "liar".to_owned() } else { name(*n) };
                set(nodes.get_mut(&name).unwrap(), what, text.clone());
            }
            for _ in 0..2 {
                if restart {
                    local.holders.clear();
                }
                let decision = decided(&local, nodes, &state);
                converge(&decision.desired, &mut state);
                local.holders = decision.holders;
            }
            decided(&local, nodes, &state)
        };
        says(&mut nodes, &[(2, annotation::ROTATION, "away".to_owned())]);
        if with_prefixes {
            nodes.get_mut("liar").unwrap().pod_cidrs = nodes[&name(2)].pod_cidrs.clone();
        }
        let away = says(&mut nodes, &[(200, annotation::PUBLIC_KEY, next(2).to_string())]);
        prop_assert!(!away.refusals.contains_key(&name(2)), "{:?}", away.refusals);
        let back = says(&mut nodes, &[
            (2, annotation::PUBLIC_KEY, next(2).to_string()),
            (2, annotation::ROTATION, "back".to_owned()),
        ]);
        prop_assert!(!back.refusals.contains_key(&name(2)), "{:?}", back.refusals);
        prop_assert!(*back.desired.peers[&next(2)].node == *name(2));
    }
}

/// Whether the simulation loses a packet where a rule is not kept.
fn loses(rules: Rules) -> bool {
    let config = Config { cases: 600, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(7), ..config });
    runner.run(&course(), |course| play(&course, rules).map_err(TestCaseError::fail)).is_err()
}

#[test]
fn without_waiting_for_a_session_packets_are_lost() {
    assert!(loses(Rules { waits_for_session: false, ..RULES }));
}

#[test]
fn without_waiting_for_each_peer_packets_are_lost() {
    assert!(loses(Rules { confirms: false, ..RULES }));
}
