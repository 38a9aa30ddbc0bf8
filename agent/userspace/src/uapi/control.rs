//! Carries requests out on the engine, by the protocol's rules.
//!
//! Owns the engine and, beside it, who holds which allowed IP. Requests come one at a time.

use std::{
    collections::{BTreeSet, HashMap},
    io,
};

use gotatun::x25519::PublicKey;
use ipnetwork::IpNetwork;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{
    Call, errno_line, reply,
    request::{AllowedIp, Request, SetDevice, SetPeer},
};
use crate::engine::{Engine, PeerChange};

/// The engine and what the protocol has to know beside it.
pub(crate) struct Control {
    engine: Engine,
    allowed: AllowedIps,
}

/// Who holds which allowed IP; each has one holder.
#[derive(Default)]
pub(super) struct AllowedIps {
    of_peer: HashMap<PublicKey, BTreeSet<IpNetwork>>,
    holder: HashMap<IpNetwork, PublicKey>,
}

impl Control {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, allowed: AllowedIps::default() }
    }

    /// Answers requests until nobody can send any.
    pub(crate) async fn run(&mut self, mut queue: mpsc::Receiver<Call>) {
        while let Some(Call { request, answer }) = queue.recv().await {
            let text = match request {
                Request::Get => reply::describe(&self.engine, &self.allowed),
                Request::Set(set) => errno_line(self.set(set)).into(),
            };
            // A client that hung up does not want its answer.
            let _ = answer.send(text);
        }
    }

    fn set(&mut self, set: SetDevice) -> Result<(), Errno> {
        self.carry_out(set).map_err(|error| {
            tracing::warn!(%error, "a change could not be carried out");
            Errno::from_io_error(&error).unwrap_or(Errno::IO)
        })
    }

    /// In the order of wireguard-go: the device first, then the peers. What fails ends it, and what came before stays.
    fn carry_out(&mut self, set: SetDevice) -> io::Result<()> {
        tracing::trace!(peers = set.peers.len(), "a set is carried out");
        if let Some(key) = set.private_key {
            self.engine.set_private_key(key)?;
        }
        if let Some(mark) = set.fwmark {
            self.engine.set_mark(mark)?;
        }
        if let Some(port) = set.listen_port {
            self.engine.set_listen_port(port)?;
        }
        if set.replace_peers {
            self.engine.clear_peers();
            self.allowed = AllowedIps::default();
        }
        set.peers.into_iter().for_each(|peer| self.set_peer(peer));
        Ok(())
    }

    fn set_peer(&mut self, change: SetPeer) {
        let key = change.public_key;
        if change.remove {
            self.engine.remove_peer(&key, self.allowed.of(&key).iter().copied());
            self.allowed.forget(&key);
            return;
        }
        // A device is no peer of its own (wg_set_device, drivers/net/wireguard/netlink.c).
        let own = self.engine.private_key().map(|key| PublicKey::from(&key)) == Some(key);
        if own || (change.update_only && !self.allowed.of_peer.contains_key(&key)) {
            return;
        }
        let preshared_key = change.preshared_key.map(|key| key.map(|key| *key));
        self.engine.set_peer(
            key,
            PeerChange { endpoint: change.endpoint, keepalive: change.keepalive, preshared_key },
        );
        let before = self.allowed.of(&key).clone();
        self.allowed.assign(key, change.replace_allowed_ips, &change.allowed_ips);
        let now = self.allowed.of(&key);
        self.engine.set_allowed_ips(&key, before.difference(now).copied(), now.difference(&before).copied());
    }
}

impl AllowedIps {
    /// All that `key` holds.
    pub(super) fn of(&self, key: &PublicKey) -> &BTreeSet<IpNetwork> {
        static NONE: BTreeSet<IpNetwork> = BTreeSet::new();
        self.of_peer.get(key).unwrap_or(&NONE)
    }

    /// Carries the changes out for `key`, which is known from then on.
    fn assign(&mut self, key: PublicKey, replace: bool, changes: &[AllowedIp]) {
        if replace {
            self.forget(&key);
        }
        self.of_peer.entry(key).or_default();
        for change in changes {
            match *change {
                AllowedIp::Add(prefix) => {
                    let loser = self.holder.insert(prefix, key).filter(|holder| *holder != key);
                    if let Some(held) = loser.and_then(|loser| self.of_peer.get_mut(&loser)) {
                        held.remove(&prefix);
                    }
                    self.of_peer.entry(key).or_default().insert(prefix);
                }
                AllowedIp::Remove(prefix) => {
                    if self.of_peer.entry(key).or_default().remove(&prefix) {
                        self.holder.remove(&prefix);
                    }
                }
            }
        }
    }

    fn forget(&mut self, key: &PublicKey) {
        for prefix in self.of_peer.remove(key).into_iter().flatten() {
            self.holder.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests;
