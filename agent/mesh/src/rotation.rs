//! Changing a node's key without losing a packet.
//!
//! A prefix belongs to one peer of a device, so one device can't hold an old key and its successor at once. While a key
//! rotates, the pairs of that node speak by a second device at both ends ([`crate::NEXT_DEVICE`]), which has each node's
//! next key, published beforehand. Once they all do, the first device gets the next key, the pairs come back to it, and the
//! second device goes. docs/decisions/0017 has the argument.

use std::fmt;

use crate::{DesiredDevice, DesiredState, Link, ObservedDevice, ObservedPeer, ObservedState, PublicKey};

/// Seconds between keepalives on the device that a pair moves to: they make its session without other traffic.
pub const ROTATION_KEEPALIVE: u16 = 5;

/// How far a node's rotation has come, as it publishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rotation {
    /// Its pairs move to the second devices.
    Away,
    /// They move back to the first ones: the key there has changed, or was left as it is.
    Back,
}

impl Rotation {
    /// Takes the word of an annotation.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Away, Self::Back].into_iter().find(|rotation| rotation.word() == word)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Back => "back",
        }
    }
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A peer of the second device, and where its routes shall lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Its key on the first device.
    pub home: PublicKey,
    /// Away where either of the two nodes is.
    pub rotation: Rotation,
    /// What the peer says of itself.
    pub peer: Option<Rotation>,
}

impl Pair {
    /// The device that the pair moves to.
    pub fn goal(self) -> Link {
        match self.rotation {
            Rotation::Away => Link::Next,
            Rotation::Back => Link::Device,
        }
    }

    /// The device that packets to this peer go by now: its goal as soon as that has a session, and the other one until
    /// then, if that has one.
    pub fn link(self, next_key: &PublicKey, desired: &DesiredState, observed: &ObservedState) -> Link {
        let next = observed.next.as_ref();
        let next_device = desired.next.as_ref().map(|next| &next.device);
        let found = next.map(|next| (&next.device, next.peers.get(next_key)));
        let away = next_device.is_some_and(|wanted| has_session(wanted, found));
        let found = observed.device.as_ref().map(|device| (device, observed.peers.get(&self.home)));
        match self.rotation {
            Rotation::Away if away => Link::Next,
            Rotation::Back if away && !has_session(&desired.device, found) => Link::Next,
            _ => Link::Device,
        }
    }
}

/// Whether a peer has a session with the key that the device shall have.
fn has_session(wanted: &DesiredDevice, found: Option<(&ObservedDevice, Option<&ObservedPeer>)>) -> bool {
    found.is_some_and(|(device, peer)| {
        device.public_key == Some(wanted.public_key) && peer.is_some_and(ObservedPeer::has_session)
    })
}
