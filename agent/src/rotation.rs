//! The change of this node's key, from its beginning to its end: when to go on, and whom to wait for.
//!
//! Each phase is in the key's file before it is acted upon, so that a restarted agent goes on from there. What the phases
//! mean is told in [`wg_overlay_mesh::Rotation`] and docs/decisions/0017.

mod probe;

use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::{info, warn};
use wg_overlay_host::PrivateKey;
use wg_overlay_mesh::{Decision, DesiredNext, Local, ObservedPeer, ObservedState, PublicKey, Rotation};

use crate::identity::{Identity, KeyFile, Keys};

/// How often sessions and routes are looked at while a key rotates, here or at a peer.
pub const LOOK: Duration = Duration::from_millis(500);

/// A peer without any session is waited for this long before the key changes: its agent may be starting.
const GRACE: Duration = Duration::from_secs(60);

/// A change that a live peer does not follow for this long is given up.
const LIMIT: Duration = Duration::from_secs(300);

/// What was sent by the device that is given up may still be on its way: in a queue of either end, or between them.
const DRAIN: Duration = Duration::from_secs(2);

/// After that the schedule's next attempt waits for this long.
const NEXT_ATTEMPT: Duration = Duration::from_secs(3600);

/// Probes that are under way at once.
const PROBES: usize = 64;

/// A rotation as the status tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RotationStatus {
    /// `away` while pairs move to the second devices, `back` while they return; absent when none is under way.
    pub phase: Option<String>,
    /// The Nodes it waits for.
    pub waiting_for: Vec<String>,
    /// When the key became the device's, in seconds since the epoch.
    pub key_since: u64,
    /// What became of the last one, since the agent's start.
    pub last: Option<String>,
    /// How many have changed the key since the agent's start.
    pub changed: u64,
    /// How many were given up since then.
    pub given_up: u64,
}

/// The keys, and how far their change has come.
pub struct Rotator {
    keys: Keys,
    file: Option<KeyFile>,
    interval: Option<Duration>,
    /// When the phase began, as far as this process knows.
    begun: Instant,
    /// The peers, by their next key, that are known to send by the device that the phase moves to.
    confirmed: BTreeSet<PublicKey>,
    probes: JoinSet<Option<PublicKey>>,
    probed: BTreeSet<PublicKey>,
    /// Since when nobody is waited for.
    drains: Option<Instant>,
    waiting: BTreeSet<String>,
    given_up: Option<Instant>,
    /// How the rotations before this one ended; nothing else of it.
    ended: RotationStatus,
}

/// Why a rotation can't begin.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// One is under way.
    #[error("a rotation is under way already")]
    UnderWay,
    /// Nobody is known yet who would have to follow.
    #[error("this node has not converged yet: `wg-overlay status` tells why")]
    Early,
    /// Nothing would keep the key.
    #[error("the next key can't be kept: keyFile is not set, or can't be written")]
    NoFile,
    /// The second device is still in use by others' rotations.
    #[error("this node's second device is in use by a rotation that has not ended ({}): try again in a minute", .0.join(", "))]
    Others(Vec<String>),
    /// Some agents don't know how.
    #[error("these nodes' agents can't follow without loss; upgrade them first, or give them a keyFile: {}", .0.join(", "))]
    Unready(Vec<String>),
    /// The file can't be written.
    #[error("can't write the key file")]
    File(#[from] io::Error),
}

impl Rotator {
    /// Goes on with what the key's file says.
    pub fn new(identity: Identity, interval: Option<Duration>) -> Self {
        Self {
            keys: identity.keys,
            file: identity.file,
            interval,
            begun: Instant::now(),
            confirmed: BTreeSet::new(),
            probes: JoinSet::new(),
            probed: BTreeSet::new(),
            drains: None,
            waiting: BTreeSet::new(),
            given_up: None,
            ended: RotationStatus::default(),
        }
    }

    /// The private keys that the devices may be given.
    pub fn private_keys(&self) -> Vec<PrivateKey> {
        std::iter::once(&self.keys.key).chain(&self.keys.next).cloned().collect()
    }

    /// Tells the decisions which keys there are and how far their change has come.
    pub fn note(&self, local: &mut Local) {
        local.public_key = self.keys.key.public_key();
        local.next_key = self.next_key();
        local.rotation = self.keys.rotation;
    }

    fn next_key(&self) -> Option<PublicKey> {
        self.keys.next.as_ref().map(PrivateKey::public_key)
    }

    /// Begins to change the key; `unready` are the peers that publish no next key. A second device that is there for
    /// another's rotation may have sessions whose other end is about to go, so that none may be there: `others` is then
    /// who it is there for.
    ///
    /// # Errors
    /// [`RotationError`]; nothing has changed then.
    pub fn begin(&mut self, unready: Vec<String>, others: Option<Vec<String>>) -> Result<(), RotationError> {
        if self.keys.rotation.is_some() {
            return Err(RotationError::UnderWay);
        }
        if self.file.is_none() {
            return Err(RotationError::NoFile);
        }
        let spent = self.next_key() == Some(self.keys.key.public_key());
        if let Some(others) = others.or(spent.then(Vec::new)) {
            return Err(RotationError::Others(others));
        }
        if !unready.is_empty() {
            return Err(RotationError::Unready(unready));
        }
        info!("the key changes: moving to the second devices");
        Ok(self.turn(Keys { rotation: Some(Rotation::Away), ..self.keys.clone() })?)
    }

    /// Goes on where the peers allow. `said` is what this node's own Node says in the view: no peer is asked before it says
    /// the phase, since the view then shows who moved before. Gives whether the keys or the phase changed, which is to be
    /// acted upon at once.
    ///
    /// # Errors
    /// Where the key's file can't be written; it is tried again at the next call.
    pub fn step(
        &mut self,
        decision: &Decision,
        observed: &ObservedState,
        said: impl FnOnce() -> Option<Rotation>,
        port: u16,
        unready: impl FnOnce() -> Vec<String>,
    ) -> io::Result<bool> {
        let Some(phase) = self.keys.rotation else { return self.rest(decision, observed, unready) };
        let Some(next) = &decision.desired.next else { return Ok(false) };
        while let Some(answer) = self.probes.try_join_next() {
            if let Ok(Some(key)) = answer {
                self.confirmed.insert(key);
            }
        }
        if self.probes.is_empty() {
            self.probed.clear();
        }
        let told = said() == Some(phase);
        if told {
            self.waiting = self.look(phase, next, decision, observed, port);
        }
        let given_up = phase == Rotation::Away && self.begun.elapsed() > LIMIT;
        self.drains = (told && self.waiting.is_empty()).then(|| self.drains.unwrap_or_else(Instant::now));
        let done = self.drains.is_some_and(|since| since.elapsed() >= DRAIN);
        if !done && !given_up {
            return Ok(false);
        }
        let mut keys = self.keys.clone();
        keys.rotation = (phase == Rotation::Away).then_some(Rotation::Back);
        let mut ended = self.ended.clone();
        match (phase, &keys.next) {
            (Rotation::Away, _) if given_up => {
                let names = self.waiting.iter().cloned().collect::<Vec<_>>().join(", ");
                warn!(waiting_for = names, "the change of the key is given up");
                self.given_up = Some(Instant::now());
                ended.given_up += 1;
                ended.last = Some(format!("given up: {names} did not follow within {} s", LIMIT.as_secs()));
            }
            (Rotation::Away, Some(next)) => {
                info!("all pairs speak by the second devices: the first one gets the next key");
                keys.key = next.clone();
                keys.since = SystemTime::now();
                ended.changed += 1;
                ended.last = Some("the key has changed".to_owned());
            }
            _ => {
                info!("all pairs are back on the first devices");
                // spent in any case: the next rotation must not find its sessions
                keys.next = Some(keys.key.clone());
            }
        }
        self.turn(keys)?;
        self.ended = ended;
        Ok(true)
    }

    /// Between rotations: a next key that was used up is replaced once no device has it, and the schedule is kept.
    fn rest(
        &mut self,
        decision: &Decision,
        observed: &ObservedState,
        unready: impl FnOnce() -> Vec<String>,
    ) -> io::Result<bool> {
        let unused = decision.desired.next.is_none() && observed.next.is_none();
        if unused && self.file.is_some() && self.next_key() == Some(self.keys.key.public_key()) {
            self.turn(Keys { next: Some(PrivateKey::generate()), ..self.keys.clone() })?;
            return Ok(true);
        }
        let tried = self.given_up.is_some_and(|then| then.elapsed() < NEXT_ATTEMPT);
        if !unused || tried || !self.is_due() {
            return Ok(false);
        }
        match self.begin(unready(), None) {
            Ok(()) => Ok(true),
            Err(RotationError::File(error)) => Err(error),
            Err(error) => {
                warn!(%error, "the key is due to change, and can't");
                self.given_up = Some(Instant::now());
                Ok(false)
            }
        }
    }

    /// Nodes that were made at once don't change their keys at once: each takes from three quarters of the interval to all
    /// of it, by its key.
    fn is_due(&self) -> bool {
        let Some(interval) = self.interval else { return false };
        let key = self.keys.key.public_key();
        let share = key.as_bytes().first().copied().unwrap_or_default();
        let wait = interval.mul_f64(0.75 + f64::from(share) / 1024.0);
        self.keys.since.elapsed().is_ok_and(|age| age >= wait)
    }

    fn turn(&mut self, keys: Keys) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.write(&keys)?;
        }
        self.keys = keys;
        self.begun = Instant::now();
        self.probes.abort_all();
        self.probes = JoinSet::new();
        self.probed.clear();
        self.drains = None;
        self.confirmed.clear();
        self.waiting.clear();
        Ok(())
    }

    /// The Nodes that still hold this phase up. Asks those that may be done.
    fn look(
        &mut self,
        phase: Rotation,
        next: &DesiredNext,
        decision: &Decision,
        observed: &ObservedState,
        port: u16,
    ) -> BTreeSet<String> {
        let desired = &decision.desired;
        let homes: BTreeSet<_> = next.pairs.values().map(|pair| pair.home).collect();
        let alone = desired.peers.iter().filter(|(key, _)| phase == Rotation::Away && !homes.contains(*key));
        let alive = alone.filter(|(key, _)| observed.peers.get(*key).is_some_and(ObservedPeer::has_session));
        let mut waiting: BTreeSet<String> = alive.map(|(_, peer)| peer.node.to_string()).collect();
        // a pair that the other node moves away stays there for that node's sake
        for (key, pair) in next.pairs.iter().filter(|(_, pair)| pair.rotation == phase) {
            let Some(peer) = next.peers.get(key).filter(|_| !self.confirmed.contains(key)) else { continue };
            let goal = pair.goal();
            let led = |net| observed.routes.get(net).is_some_and(|route| route.through == Some(goal));
            // one that returns may not know yet that this node is away
            let stays = phase == Rotation::Back || pair.peer != Some(Rotation::Back);
            let moved =
                stays && pair.link(key, desired, observed) == goal && peer.allowed_ips.iter().all(led);
            if moved && self.probes.len() < PROBES && self.probed.insert(*key) {
                self.probes.spawn(probe::answers(
                    *key,
                    goal,
                    peer.allowed_ips.iter().copied().collect(),
                    port,
                ));
            }
            let second = observed.next.as_ref().and_then(|next| next.peers.get(key));
            let mut both = second.into_iter().chain(observed.peers.get(&pair.home));
            let alive = both.any(ObservedPeer::has_session);
            if alive || (phase == Rotation::Away && self.begun.elapsed() < GRACE) {
                waiting.insert(peer.node.to_string());
            }
        }
        waiting
    }

    /// What a person should know of it.
    pub fn status(&self) -> RotationStatus {
        RotationStatus {
            phase: self.keys.rotation.map(|rotation| rotation.to_string()),
            waiting_for: self.waiting.iter().cloned().collect(),
            key_since: self.keys.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            ..self.ended.clone()
        }
    }
}
