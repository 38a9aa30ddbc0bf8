//! What may happen next to each node, and when its rotation goes on.

use wg_overlay_mesh::{Link, Local, NodeRecord, Rotation, annotation};

use super::{Event, World, number, pairs};
use crate::model::cluster::{key, node, set, set_key, v4, v6};

impl World {
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

    pub(super) fn can_act(&self, at: usize) -> bool {
        let machine = &self.machines[at];
        !machine.steps.is_empty()
            || !machine.applied
            || !machine.next_steps.is_empty()
            || self.phase(at).is_some()
    }

    /// How the rotation of a node goes on, and whether its key changes with that. The same phase again is a new next key.
    pub(super) fn phase(&self, at: usize) -> Option<(Option<Rotation>, bool)> {
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

    pub(super) fn can_publish(&self, at: usize) -> bool {
        let machine = &self.machines[at];
        let ready = machine.applied && machine.steps.is_empty();
        (ready || !self.rules.applies_first) && self.differs(at)
    }

    /// Whether it has something to say.
    pub(super) fn differs(&self, at: usize) -> bool {
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
    pub(super) fn goal(&self, at: usize, other: usize) -> Link {
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
    pub(super) fn says(&self, at: usize, other: usize) -> Option<Rotation> {
        Rotation::parse(self.seen(at, other).annotations.get(annotation::ROTATION)?)
    }

    pub(super) fn hears_itself(&self, at: usize) -> bool {
        !self.rules.hears_itself || self.says(at, at) == self.machines[at].local.rotation
    }

    pub(super) fn seen(&self, at: usize, other: usize) -> &NodeRecord {
        let writes = &self.writes[..self.machines[at].seen];
        let version = writes.iter().rev().find(|(node, _)| *node == other).map_or(0, |(_, version)| *version);
        &self.machines[other].versions[version]
    }
}

/// What a node says of itself.
pub(super) fn record(n: u8, local: &Local) -> NodeRecord {
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
