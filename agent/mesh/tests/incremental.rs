//! The law of following changes: what [`Mesh`] has after any of them is what [`decide`] gives for all of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    arbitrary::{Case, NodeChange, any_node, any_peer, any_rotation, case, prefixes},
    cluster::{fresh, ip, key, local, name, net, nets, node, set, v4, view},
    kernel::{apply_all, converge},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use wg_overlay_mesh::{
    Changes, ClusterView, Decision, KeepaliveSetting, Link, Local, LocalProblem, Mesh, NodeRecord,
    ObservedPeer, ObservedState, PublicKey, Resolved, Rotation, Step, Touched, annotation, decide, plan,
    plan_touched,
};

/// Something that happens, to a Node, the kernel, the resolver, this node or its settings.
#[derive(Debug, Clone)]
enum Event {
    Says(u8, NodeChange, Option<&'static str>, Option<u8>),
    Leaves(u8),
    Returns(u8),
    Answer(Option<&'static str>),
    PeerBecomes(u8, Option<ObservedPeer>, Vec<usize>),
    LinkGetsAddress(&'static str),
    RoutesOfIpv6Go,
    Keepalive(u16),
    FailsClosed(bool),
    OwnPodCidrs(usize),
    Rotates(Option<Rotation>, u8),
}

fn any_event() -> impl Strategy<Value = Event> {
    let part =
        option::weighted(0.2, select(vec!["10.244.3.128/25", "10.244.4.0/26", "fd00:244:0:3:8000::/65"]));
    let says = (2..=9u8, any_node(), part, option::weighted(0.2, 1..=3u8));
    let peer = (1..=12u8, option::weighted(0.7, any_peer()), vec(0..prefixes().len(), 0..3));
    prop_oneof![
        12 => says.prop_map(|(n, change, part, extra)| Event::Says(n, change, part, extra)),
        3 => (2..=9u8).prop_map(Event::Leaves),
        3 => (2..=9u8).prop_map(Event::Returns),
        3 => peer.prop_map(|(n, peer, nets)| Event::PeerBecomes(n, peer, nets)),
        1 => option::of(select(vec!["203.0.113.8", "10.244.3.9", "192.0.2.1"])).prop_map(Event::Answer),
        1 => select(vec!["10.244.5.9/28", "203.0.113.8/24"]).prop_map(Event::LinkGetsAddress),
        1 => Just(Event::RoutesOfIpv6Go),
        1 => (0..30u16).prop_map(Event::Keepalive),
        1 => any::<bool>().prop_map(Event::FailsClosed),
        1 => (0..=2usize).prop_map(Event::OwnPodCidrs),
        1 => (option::of(any_rotation()), select(vec![1, 2, 101, 103])).prop_map(|(r, n)| Event::Rotates(r, n)),
    ]
}

/// All that a decision depends on, and a [`Mesh`] that follows it.
struct World {
    local: Local,
    view: ClusterView,
    resolved: Resolved,
    state: ObservedState,
    mesh: Mesh,
    changes: Changes,
    /// The peers as they were last looked at.
    peers: BTreeMap<(Link, PublicKey), ObservedPeer>,
    /// Whether the last plan was carried out.
    carried_out: bool,
}

/// The peers of both devices.
fn all_peers(state: &ObservedState) -> BTreeMap<(Link, PublicKey), ObservedPeer> {
    let first = state.peers.iter().map(|(key, peer)| ((Link::Device, *key), peer.clone()));
    let second = state.next.iter().flat_map(|next| &next.peers);
    first.chain(second.map(|(key, peer)| ((Link::Next, *key), peer.clone()))).collect()
}

impl World {
    fn new(mut case: Case) -> Self {
        case.local.settings.overlay_cidrs = nets(["100.64.0.0/24"]);
        let nodes = case.view.keys().cloned().collect();
        Self {
            local: case.local,
            resolved: Resolved::new(),
            mesh: Mesh::default(),
            changes: Changes { nodes, ..Changes::default() },
            peers: all_peers(&case.observed),
            state: case.observed,
            view: case.view,
            carried_out: false,
        }
    }

    /// Notes which peers differ since it was called last, as whoever changes them does.
    fn note_peers(&mut self) {
        let now = all_peers(&self.state);
        let keys: BTreeSet<_> = now.keys().chain(self.peers.keys()).copied().collect();
        let differ = keys.into_iter().filter(|key| now.get(key) != self.peers.get(key));
        self.changes.peers.extend(differ.map(|(_, key)| key));
        self.peers = now;
    }

    fn happen(&mut self, event: &Event) {
        match event.clone() {
            Event::Says(n, change, part, extra) => {
                let mut record = change.apply(n);
                record.pod_cidrs.extend(part.map(str::to_owned));
                if let Some(m) = extra {
                    set(&mut record, annotation::OVERLAY_IPS, format!("100.64.0.{m}"));
                }
                self.set(n, Some(record));
            }
            Event::Leaves(n) => self.set(n, None),
            Event::Returns(n) => self.set(n, Some(node(n))),
            Event::Answer(answer) => {
                let answers = answer.map(|text| ("edge.example.com".to_owned(), vec![ip(text)]));
                self.resolved = answers.into_iter().collect();
            }
            Event::PeerBecomes(n, peer, _) if peer.is_none() => drop(self.state.peers.remove(&key(n))),
            Event::PeerBecomes(n, peer, taken) => self.set_peer(key(n), peer.unwrap(), &taken),
            Event::LinkGetsAddress(text) => {
                let link = self.state.underlay.links.get_mut(&3).unwrap();
                link.addresses = BTreeSet::from([net(text)]);
            }
            Event::RoutesOfIpv6Go => {
                self.state.underlay.routes.retain(|route| route.destination.addr().is_ipv4());
            }
            Event::Keepalive(seconds) => self.local.settings.keepalive = KeepaliveSetting::Fixed(seconds),
            Event::Rotates(rotation, n) => {
                (self.local.rotation, self.local.next_key) = (rotation, Some(key(n)));
            }
            Event::FailsClosed(fails) => self.local.settings.fail_closed = fails,
            Event::OwnPodCidrs(count) => {
                let mut own = node(1);
                own.pod_cidrs.truncate(count);
                self.set(1, Some(own));
            }
        }
        self.note_peers();
    }

    fn set(&mut self, n: u8, record: Option<NodeRecord>) {
        self.changes.nodes.insert(name(n));
        match record {
            Some(record) => drop(self.view.insert(name(n), record)),
            None => drop(self.view.remove(&name(n))),
        }
    }

    /// Somebody writes a peer of theirs, and the kernel takes its prefixes from whoever had them.
    fn set_peer(&mut self, key: PublicKey, mut peer: ObservedPeer, taken: &[usize]) {
        let Some(device) = &self.state.device else { return };
        if device.public_key == Some(key) {
            return;
        }
        peer.allowed_ips = taken.iter().map(|at| prefixes()[*at]).collect();
        for other in self.state.peers.values_mut() {
            other.allowed_ips = other.allowed_ips.difference(&peer.allowed_ips).copied().collect();
        }
        self.state.peers.insert(key, peer);
    }

    /// Decides in both ways. Gives what the one touched and what the other decided.
    fn decide(&mut self) -> Result<(Touched, Decision), LocalProblem> {
        let changes = std::mem::take(&mut self.changes);
        let touched = self.mesh.update(&self.local, &self.view, &self.resolved, &self.state, changes);
        let decision = decide(&self.local, &self.view, &self.resolved, &self.state);
        match (touched, decision) {
            (Ok(touched), Ok(decision)) => {
                self.local.holders.clone_from(&decision.holders);
                Ok((touched, decision))
            }
            (Err(followed), Err(problem)) => {
                assert_eq!(followed, problem);
                Err(problem)
            }
            (followed, decided) => panic!("{followed:?}, decided anew {decided:?}"),
        }
    }

    /// Decides, plans, and carries the plan out where `works`. Gives whether a part was enough.
    fn round(&mut self, works: bool) -> bool {
        let Ok((touched, decision)) = self.decide() else { return false };
        let followed = self.mesh.decision().unwrap();
        assert_eq!(followed, &decision);
        assert!(self.mesh.names().all(|name| name == "edge.example.com"));
        let whole = plan(&decision.desired, &self.state);
        if self.carried_out {
            assert_eq!(plan_touched(&decision.desired, &self.state, &touched), whole, "{touched:?}");
        }
        if works {
            apply_all(&whole, &mut self.state);
            self.note_peers();
        }
        self.carried_out = works || whole.steps.is_empty();
        touched.part().is_some()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_followed_is_what_is_decided_anew(
        case in case(),
        rounds in vec((vec(any_event(), 0..3), prop::bool::weighted(0.8)), 1..14),
    ) {
        let mut world = World::new(case);
        for (events, works) in &rounds {
            events.iter().for_each(|event| world.happen(event));
            world.round(*works);
        }
    }
}

/// Five honest nodes whose kernel is as desired, and no change left to be looked at.
fn settled() -> World {
    let mut world = World::new(Case { local: local(), view: view(1..=5), observed: fresh() });
    for _ in 0..3 {
        world.round(true);
    }
    assert!(world.changes.peers.is_empty());
    world
}

fn steps(world: &mut World) -> (Touched, Vec<Step>) {
    let (touched, decision) = world.decide().unwrap();
    let steps = plan_touched(&decision.desired, &world.state, &touched).steps;
    converge(&decision.desired, &mut world.state);
    world.note_peers();
    (touched, steps)
}

fn count(steps: &[Step], which: impl Fn(&Step) -> bool) -> usize {
    steps.iter().filter(|step| which(step)).count()
}

fn peers_and_routes(steps: &[Step]) -> (usize, usize) {
    let peers = count(steps, |s| matches!(s, Step::SetPeer(_) | Step::RemovePeer(..)));
    (peers, count(steps, |s| matches!(s, Step::SetRoute(..) | Step::RemoveRoute(_))))
}

#[test]
fn one_nodes_change_touches_that_node_and_takes_just_its_steps() {
    let address = |r: &mut NodeRecord| r.internal_ips = vec!["192.0.2.99".to_owned()];
    let new_key = |r: &mut NodeRecord| model::cluster::set_key(r, key(100));
    let cidrs = |r: &mut NodeRecord| r.pod_cidrs.clone_from(&node(9).pod_cidrs);
    type Change = fn(&mut NodeRecord);
    let cases: [(Change, (usize, usize)); 3] = [(address, (1, 0)), (new_key, (2, 0)), (cidrs, (1, 4))];
    for (change, expected) in cases {
        let mut world = settled();
        let mut record = node(3);
        record.annotations.remove(annotation::OVERLAY_IPS);
        world.set(3, Some(record.clone()));
        assert_eq!(steps(&mut world).1, []);
        change(&mut record);
        world.set(3, Some(record));
        let (touched, steps) = steps(&mut world);
        assert_eq!(touched.part().unwrap().nodes.iter().map(|n| &**n).collect::<Vec<_>>(), [name(3)]);
        assert_eq!(peers_and_routes(&steps), expected, "{steps:?}");
    }
    let mut world = settled();
    world.set(6, Some(node(6)));
    assert_eq!(peers_and_routes(&steps(&mut world).1), (1, 2));
    let (touched, steps) = steps(&mut world);
    assert_eq!(
        (touched.part().unwrap().nodes.len(), steps.len()),
        (1, 0),
        "the holder of its prefixes is new"
    );
}

#[test]
fn nothing_is_touched_where_nothing_changed() {
    let mut world = settled();
    world.set(1, Some(node(1)));
    let (touched, steps) = steps(&mut world);
    assert_eq!((touched, steps), (Touched::Only(Default::default()), vec![]));
}

#[test]
fn a_conflict_reaches_whoever_is_in_it_and_no_further() {
    let mut world = settled();
    let mut copy = node(7);
    copy.pod_cidrs = vec![v4(3).to_string()];
    copy.annotations.remove(annotation::OVERLAY_IPS);
    world.set(7, Some(copy));
    let (touched, steps) = steps(&mut world);
    assert_eq!(touched.part().unwrap().nodes.iter().map(|n| &**n).collect::<Vec<_>>(), [name(3), name(7)]);
    assert_eq!(peers_and_routes(&steps), (0, 0));
}
