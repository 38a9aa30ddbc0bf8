//! Several nodes, each with its kernel, its files and an agent that sees the others' Nodes late.

mod choices;
mod packets;

use std::{collections::BTreeMap, time::Duration};

use wg_overlay_mesh::{Link, Local, NodeRecord, ObservedState, Step, decide, plan};

use self::choices::record;
use super::{
    cluster::{fresh, key, local, name, nets},
    kernel::{apply, wireguard},
};

/// What an agent does so that no packet is lost; a test leaves one out to see that it is needed.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// A route moves to a device that has a session.
    pub waits_for_session: bool,
    /// A phase ends once each peer was seen to use its device.
    pub confirms: bool,
    /// A rotation begins while there is no second device here.
    pub begins_alone: bool,
    /// Peers are asked once the own Node was seen to say the phase, and none that returns by one that is away.
    pub hears_itself: bool,
    /// What a node says of itself is true of its kernel when it says it.
    pub applies_first: bool,
}

/// All of them.
pub const RULES: Rules = Rules {
    waits_for_session: true,
    confirms: true,
    begins_alone: true,
    hears_itself: true,
    applies_first: true,
};

/// One thing that may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A node sees the next write of whomever: a watch shows them in their order.
    Sees(usize),
    /// Its agent takes one step of its plan, makes a plan, or goes on with its rotation.
    Acts(usize),
    /// It writes its Node.
    Publishes(usize),
    /// It notes a handshake with another.
    Shakes(usize, usize, Link),
    /// It finds that its pair with another uses the device that it shall use.
    Confirms(usize, usize),
    /// Its agent starts anew.
    Restarts(usize),
    /// A person asks it to change its key.
    Asks(usize),
}

/// A node.
#[derive(Debug)]
struct Machine {
    /// What its files say.
    local: Local,
    kernel: ObservedState,
    /// The versions of its own Node.
    versions: Vec<NodeRecord>,
    /// How many of the writes it has seen.
    seen: usize,
    /// The steps of its plan that are left.
    steps: Vec<Step>,
    /// The plan that it would make now.
    next_steps: Vec<Step>,
    /// Whether its kernel is as the files say, as far as it knows.
    applied: bool,
    /// By which device each pair was found to lead, in this phase.
    confirmed: BTreeMap<usize, Link>,
    asked: bool,
}

/// All of them.
#[derive(Debug)]
pub struct World {
    machines: Vec<Machine>,
    rules: Rules,
    /// Whose Node was written, and the version, in the order of the writes.
    writes: Vec<(usize, usize)>,
    /// Keys made and peers added so far.
    made: u8,
    added: u64,
    /// What happened, for whoever reads of a failure.
    pub log: Vec<String>,
}

impl World {
    /// Nodes that hold each other, all of them seen; `talks` tells which of them have spoken already.
    pub fn new(count: usize, rules: Rules, talks: impl Fn(usize, usize) -> bool) -> Self {
        let machine = |at: usize| {
            let n = number(at);
            let mut kernel = fresh();
            let link = kernel.underlay.links.get_mut(&2).unwrap();
            link.addresses = nets([&format!("192.0.2.{n}/24"), &format!("2001:db8::{n:x}/64")]);
            let local =
                Local { node_name: name(n), public_key: key(n), next_key: Some(key(100 + n)), ..local() };
            let (versions, seen) = (vec![record(n, &local)], 0);
            let (steps, next_steps, confirmed) = (vec![], vec![], BTreeMap::new());
            Machine {
                local,
                kernel,
                versions,
                seen,
                steps,
                next_steps,
                applied: false,
                confirmed,
                asked: false,
            }
        };
        let machines = (0..count).map(machine).collect();
        let mut world = Self { machines, rules, writes: vec![], made: 0, added: 0, log: vec![] };
        for at in 0..count {
            world.look(at);
            while world.can_act(at) {
                world.happen(Event::Acts(at));
            }
        }
        for (at, other) in pairs(count).filter(|(at, other)| talks(*at.min(other), *at.max(other))) {
            world.happen(Event::Shakes(at, other, Link::Device));
        }
        world.log.clear();
        world
    }

    /// Lets it happen.
    pub fn happen(&mut self, event: Event) {
        self.log.push(format!("{event:?}"));
        match event {
            Event::Sees(at) => self.machines[at].seen += 1,
            Event::Acts(at) => self.act(at),
            Event::Publishes(at) => {
                let version = record(number(at), &self.machines[at].local);
                self.writes.push((at, self.machines[at].versions.len()));
                self.machines[at].versions.push(version);
            }
            Event::Shakes(at, other, link) => {
                let (mine, theirs) =
                    (self.device_key(at, link).unwrap(), self.device_key(other, link).unwrap());
                let (_, peers) = wireguard(link, &mut self.machines[other].kernel).unwrap();
                let far = peers[&mine].received;
                let (_, peers) = wireguard(link, &mut self.machines[at].kernel).unwrap();
                let peer = peers.get_mut(&theirs).unwrap();
                (peer.handshake_age, peer.sent) = (Some(Duration::from_secs(1)), far);
            }
            Event::Confirms(at, other) => {
                let goal = self.goal(at, other);
                self.machines[at].confirmed.insert(other, goal);
            }
            Event::Restarts(at) => {
                let machine = &mut self.machines[at];
                machine.steps.clear();
                machine.confirmed.clear();
                machine.local.holders.clear();
                machine.applied = false;
            }
            Event::Asks(at) => self.machines[at].asked = true,
        }
        let (Event::Sees(at)
        | Event::Acts(at)
        | Event::Publishes(at)
        | Event::Shakes(at, ..)
        | Event::Confirms(at, _)
        | Event::Restarts(at)
        | Event::Asks(at)) = event;
        self.look(at);
    }

    fn act(&mut self, at: usize) {
        if !self.machines[at].steps.is_empty() {
            let step = self.machines[at].steps.remove(0);
            self.log.push(format!("  {step}"));
            return self.apply(at, &step);
        }
        let steps = self.machines[at].next_steps.clone();
        if !steps.is_empty() || !self.machines[at].applied {
            self.log.push(format!("  plans {} steps", steps.len()));
            self.machines[at].applied = steps.is_empty();
            self.machines[at].local.holders = self.decision(at).holders;
            self.machines[at].steps = steps;
            return;
        }
        let Some((rotation, changes_key)) = self.phase(at) else { return };
        self.log.push(format!("  {rotation:?}, changes key {changes_key}"));
        self.made += 1;
        let fresh = key(150 + self.made);
        let machine = &mut self.machines[at];
        machine.confirmed.clear();
        machine.applied = false;
        if rotation == machine.local.rotation {
            machine.local.next_key = Some(fresh);
            return;
        }
        machine.local.rotation = rotation;
        machine.local.public_key =
            machine.local.next_key.filter(|_| changes_key).unwrap_or(machine.local.public_key);
    }

    fn decision(&self, at: usize) -> wg_overlay_mesh::Decision {
        let view = (0..self.machines.len()).map(|n| (name(number(n)), self.seen(at, n).clone())).collect();
        decide(&self.machines[at].local, &view, &BTreeMap::new(), &self.machines[at].kernel).unwrap()
    }

    /// Decides and plans, where no plan is left to be carried out.
    fn look(&mut self, at: usize) {
        if self.machines[at].steps.is_empty() {
            let steps = plan(&self.decision(at).desired, &self.machines[at].kernel).steps;
            self.machines[at].next_steps = steps;
        }
    }

    fn apply(&mut self, at: usize, step: &Step) {
        let kernel = &mut self.machines[at].kernel;
        apply(step, kernel).unwrap_or_else(|e| panic!("{e}"));
        if let Step::SetPeer(change) = step
            && change.add
        {
            self.added += 1;
            let (_, peers) = wireguard(change.device, kernel).unwrap();
            let peer = peers.get_mut(&change.public_key).unwrap();
            peer.received = self.added;
            peer.handshake_age = (!self.rules.waits_for_session).then_some(Duration::ZERO);
        }
    }
}

fn number(at: usize) -> u8 {
    u8::try_from(at + 1).unwrap()
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |at| (0..count).map(move |other| (at, other))).filter(|(at, other)| at != other)
}
