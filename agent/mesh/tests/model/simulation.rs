//! Several nodes, each with its kernel, its files and an agent that sees the others' Nodes late.

use std::{collections::BTreeMap, time::Duration};

use wg_overlay_mesh::{
    Link, Local, NodeRecord, ObservedState, PublicKey, Rotation, Step, annotation, decide, plan,
};

use super::{
    cluster::{fresh, key, local, name, nets, node, set, set_key, v4, v6},
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

    /// What can happen now.
    pub fn events(&self) -> Vec<Event> {
        let count = self.machines.len();
        let one = |at: usize| {
            let machine = &self.machines[at];
            let acts = self.can_act(at).then_some(Event::Acts(at));
            let publishes = self.can_publish(at).then_some(Event::Publishes(at));
            let sees = (machine.seen < self.writes.len()).then_some(Event::Sees(at));
            let asks = (!machine.asked).then_some(Event::Asks(at));
            [acts, publishes, sees, asks, Some(Event::Restarts(at))].into_iter().flatten()
        };
        let two = |(at, other): (usize, usize)| {
            let shakes = |link| self.can_shake(at, other, link).then_some(Event::Shakes(at, other, link));
            let confirms = self.can_confirm(at, other).then_some(Event::Confirms(at, other));
            [shakes(Link::Device), shakes(Link::Next), confirms].into_iter().flatten()
        };
        (0..count).flat_map(one).chain(pairs(count).flat_map(two)).collect()
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

    /// The first pair whose packets would be lost now, and why.
    pub fn lost(&self) -> Option<String> {
        let lost = |(from, to): (usize, usize)| {
            let nets = [v4(number(to)), v6(number(to))];
            nets.into_iter().find_map(|net| self.way(from, to, &net).err()).map(|why| (from, to, why))
        };
        pairs(self.machines.len()).find_map(lost).map(|(from, to, why)| format!("{from} to {to}: {why}"))
    }

    fn way(&self, from: usize, to: usize, net: &ipnet::IpNet) -> Result<(), String> {
        let link = self.link(from, net).ok_or("no route")?;
        let mine = self.device_key(from, link).ok_or("no device here")?;
        let theirs = self.device_key(to, link).ok_or(format!("no {link} there"))?;
        let peer = self.peer(from, link, &theirs).ok_or(format!("{link}: the peer has another key"))?;
        let back = self.peer(to, link, &mine).ok_or(format!("{link}: it does not know our key"))?;
        let sources = [v4(number(from)), v6(number(from))];
        if !peer.allowed_ips.contains(net) || !sources.iter().all(|net| back.allowed_ips.contains(net)) {
            return Err(format!("{link}: allowed IPs"));
        }
        if peer.sent != 0 && peer.sent != back.received {
            return Err(format!("{link}: a session that the other has no more"));
        }
        Ok(())
    }

    /// What is not as it was before but for the keys of those who were asked; to be called when nothing is left to happen.
    pub fn unrest(&self) -> Option<String> {
        let keys: Vec<PublicKey> = self.machines.iter().map(|m| m.local.public_key).collect();
        self.machines.iter().enumerate().find_map(|(at, machine)| {
            let home = machine.kernel.routes.values().all(|route| route.through == Some(Link::Device));
            let known = machine.kernel.peers.keys().all(|key| keys.contains(key));
            let local = &machine.local;
            let rotated = (local.public_key != key(number(at))) == machine.asked;
            let rests = home && known && rotated && machine.kernel.next.is_none() && local.rotation.is_none();
            let fresh = local.next_key.is_some_and(|next| !keys.contains(&next));
            (!rests || !fresh).then(|| {
                format!(
                    "{at}: home {home}, known {known}, rotated {rotated}, fresh {fresh}, {:?}",
                    local.rotation
                )
            })
        })
    }

    fn can_act(&self, at: usize) -> bool {
        let machine = &self.machines[at];
        !machine.steps.is_empty()
            || !machine.applied
            || !machine.next_steps.is_empty()
            || self.phase(at).is_some()
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

    /// How the rotation of a node goes on, and whether its key changes with that. The same phase again is a new next key.
    fn phase(&self, at: usize) -> Option<(Option<Rotation>, bool)> {
        let machine = &self.machines[at];
        let local = &machine.local;
        let alone = machine.kernel.next.is_none();
        let spent = local.next_key == Some(local.public_key);
        let changed = local.public_key != key(number(at));
        let confirmed = (0..self.machines.len())
            .filter(|other| *other != at && self.rules.confirms)
            // one that is away stays there for its own sake
            .filter(|other| {
                local.rotation != Some(Rotation::Back) || self.says(at, *other) != Some(Rotation::Away)
            })
            .all(|other| machine.confirmed.get(&other) == Some(&self.goal(at, other)));
        match local.rotation {
            None if spent => alone.then_some((None, false)),
            None if machine.asked && !changed => {
                (alone || !self.rules.begins_alone).then_some((Some(Rotation::Away), false))
            }
            None => None,
            Some(_) if !confirmed || self.differs(at) || !self.hears_itself(at) => None,
            Some(Rotation::Away) => Some((Some(Rotation::Back), true)),
            Some(Rotation::Back) => Some((None, false)),
        }
    }

    fn can_publish(&self, at: usize) -> bool {
        let machine = &self.machines[at];
        let ready = machine.applied && machine.steps.is_empty();
        (ready || !self.rules.applies_first) && self.differs(at)
    }

    /// Whether it has something to say.
    fn differs(&self, at: usize) -> bool {
        self.machines[at].versions.last() != Some(&record(number(at), &self.machines[at].local))
    }

    fn can_shake(&self, at: usize, other: usize, link: Link) -> bool {
        let keys = (self.device_key(at, link), self.device_key(other, link));
        let (Some(mine), Some(theirs)) = keys else { return false };
        let ends = (self.peer(at, link, &theirs), self.peer(other, link, &mine));
        matches!(ends, (Some(here), Some(there)) if here.sent != there.received)
    }

    fn can_confirm(&self, at: usize, other: usize) -> bool {
        let machine = &self.machines[at];
        let goal = self.goal(at, other);
        let leads = |from: usize, to: usize| {
            [v4(number(to)), v6(number(to))].iter().all(|net| self.link(from, net) == Some(goal))
        };
        let own = machine.local.rotation;
        let returns = own == Some(Rotation::Away) && self.says(at, other) == Some(Rotation::Back);
        let asks = own.is_some() && !self.differs(at) && self.hears_itself(at) && machine.applied;
        let asks = asks && !(returns && self.rules.hears_itself);
        asks && machine.confirmed.get(&other) != Some(&goal) && leads(at, other) && leads(other, at)
    }

    /// The device that a pair moves to, as one of the two sees it.
    fn goal(&self, at: usize, other: usize) -> Link {
        let own = match self.machines[at].local.rotation {
            Some(Rotation::Back) if self.says(at, at) != Some(Rotation::Back) => Some(Rotation::Away),
            own => own,
        };
        match own.into_iter().chain(self.says(at, other)).min() {
            Some(Rotation::Away) => Link::Next,
            _ => Link::Device,
        }
    }

    /// What a node says of its rotation, as far as another, or itself, has seen.
    fn says(&self, at: usize, other: usize) -> Option<Rotation> {
        Rotation::parse(self.seen(at, other).annotations.get(annotation::ROTATION)?)
    }

    fn hears_itself(&self, at: usize) -> bool {
        !self.rules.hears_itself || self.says(at, at) == self.machines[at].local.rotation
    }

    fn seen(&self, at: usize, other: usize) -> &NodeRecord {
        let writes = &self.writes[..self.machines[at].seen];
        let version = writes.iter().rev().find(|(node, _)| *node == other).map_or(0, |(_, version)| *version);
        &self.machines[other].versions[version]
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

    fn device_key(&self, at: usize, link: Link) -> Option<PublicKey> {
        let kernel = &self.machines[at].kernel;
        let device = match link {
            Link::Next => kernel.next.as_ref().map(|next| &next.device),
            _ => kernel.device.as_ref(),
        };
        device.filter(|device| device.up).and_then(|device| device.public_key)
    }

    fn peer(&self, at: usize, link: Link, key: &PublicKey) -> Option<&wg_overlay_mesh::ObservedPeer> {
        let kernel = &self.machines[at].kernel;
        match link {
            Link::Next => kernel.next.as_ref().and_then(|next| next.peers.get(key)),
            _ => kernel.peers.get(key),
        }
    }

    fn link(&self, at: usize, net: &ipnet::IpNet) -> Option<Link> {
        self.machines[at].kernel.routes.get(net).and_then(|route| route.through)
    }
}

fn number(at: usize) -> u8 {
    u8::try_from(at + 1).unwrap()
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |at| (0..count).map(move |other| (at, other))).filter(|(at, other)| at != other)
}

/// What a node says of itself.
fn record(n: u8, local: &Local) -> NodeRecord {
    let mut record = node(n);
    set_key(&mut record, local.public_key);
    record.annotations.remove(annotation::NEXT_PUBLIC_KEY);
    if let Some(key) = local.next_key {
        set(&mut record, annotation::NEXT_PUBLIC_KEY, key.to_string());
    }
    if let Some(rotation) = local.rotation {
        set(&mut record, annotation::ROTATION, rotation.to_string());
    }
    record
}
