//! Carries requests out on the engine, by the protocol's rules.
//!
//! Owns the engine and, beside it, who holds which allowed IP: the engine does not tell, and an
//! allowed IP given to one peer has to be taken from the other. Requests come one at a time.

use std::collections::{BTreeSet, HashMap};

use gotatun::{
    device::{self, Device, Peer, configure::DeviceWrite},
    x25519::PublicKey,
};
use ipnetwork::IpNetwork;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{
    Call, errno_line, reply,
    request::{AllowedIp, Request, SetDevice, SetPeer},
};
use crate::device::{Transports, nobodys_key};

/// The engine and what the protocol has to know beside it.
pub(crate) struct Control {
    engine: Device<Transports>,
    /// Whether the engine's key is one that was set; else it is nobody's.
    has_key: bool,
    allowed: AllowedIps,
}

/// Who holds which allowed IP; each has one holder.
#[derive(Default)]
struct AllowedIps {
    of_peer: HashMap<PublicKey, BTreeSet<IpNetwork>>,
    holder: HashMap<IpNetwork, PublicKey>,
}

impl Control {
    pub(crate) fn new(engine: Device<Transports>) -> Self {
        Self { engine, has_key: false, allowed: AllowedIps::default() }
    }

    /// Answers requests until nobody can send any.
    pub(crate) async fn run(&mut self, mut queue: mpsc::Receiver<Call>) {
        while let Some(Call { request, answer }) = queue.recv().await {
            let text = match request {
                Request::Get => reply::describe(&self.engine, self.has_key).await,
                Request::Set(set) => errno_line(self.set(set).await).into(),
            };
            // A client that hung up does not want its answer.
            let _ = answer.send(text);
        }
    }

    /// Ends the engine and its tasks.
    pub(crate) async fn stop(self) {
        self.engine.stop().await;
    }

    async fn set(&mut self, set: SetDevice) -> Result<(), Errno> {
        let old_port = self.engine.read(async |d| d.listen_port()).await;
        let new_port = set.listen_port.filter(|port| *port != old_port);
        let allowed = &mut self.allowed;
        let mut has_key = self.has_key;
        let outcome = self
            .engine
            .write(async |engine| {
                if let Some(key) = set.private_key {
                    has_key = key.is_some();
                    let key = key.map_or_else(nobodys_key, Ok)?;
                    engine.set_private_key(key).await;
                }
                if let Some(mark) = set.fwmark {
                    engine.set_fwmark(mark)?;
                }
                if let Some(port) = new_port {
                    engine.set_listen_port(port);
                }
                if set.replace_peers {
                    engine.clear_peers();
                    *allowed = AllowedIps::default();
                }
                for peer in set.peers {
                    set_peer(engine, allowed, peer).await;
                }
                Ok(())
            })
            .await;
        self.has_key = has_key;
        let outcome = outcome.and_then(|done: Result<(), device::Error>| done);
        if matches!(outcome, Err(device::Error::Bind(..))) {
            // The engine is without a socket; its old port is still ours.
            let restored = self.engine.set_listen_port(old_port).await;
            if let Err(error) = restored {
                tracing::error!(port = old_port, %error, "the old listen port is lost");
            }
        }
        outcome.map_err(|error| {
            tracing::warn!(%error, "a change could not be carried out");
            match error {
                device::Error::Bind(error, _) | device::Error::IoError(error) => {
                    Errno::from_io_error(&error).unwrap_or(Errno::IO)
                }
                _ => Errno::IO,
            }
        })
    }
}

async fn set_peer(engine: &mut DeviceWrite<'_, Transports>, allowed: &mut AllowedIps, change: SetPeer) {
    let key = change.public_key;
    if change.remove {
        engine.remove_peer(&key).await;
        allowed.forget(&key);
        return;
    }
    let known = allowed.of_peer.contains_key(&key);
    // A device is no peer of its own (wg_set_device, drivers/net/wireguard/netlink.c).
    let own = engine.private_key().map(PublicKey::from) == Some(key);
    if own || (change.update_only && !known) {
        return;
    }
    let (prefixes, losers) = allowed.assign(key, change.replace_allowed_ips, &change.allowed_ips);
    for loser in losers {
        let rest = allowed.of_peer.get(&loser).cloned().unwrap_or_default();
        engine
            .modify_peer(&loser, |peer| {
                peer.clear_allowed_ips();
                peer.add_allowed_ips(rest);
            })
            .await;
    }
    if !known {
        let mut peer = Peer::new(key).with_allowed_ips(prefixes);
        peer.endpoint = change.endpoint;
        peer.keepalive = change.keepalive;
        peer.preshared_key = change.preshared_key.flatten().map(|key| *key);
        engine.add_peer(peer);
        return;
    }
    // The peer's session and counters stay.
    engine
        .modify_peer(&key, |peer| {
            if let Some(endpoint) = change.endpoint {
                peer.set_endpoint(Some(endpoint));
            }
            if let Some(keepalive) = change.keepalive {
                peer.set_keepalive(Some(keepalive));
            }
            if let Some(preshared_key) = change.preshared_key {
                peer.set_preshared_key(preshared_key.map(|key| *key));
            }
            peer.clear_allowed_ips();
            peer.add_allowed_ips(prefixes);
        })
        .await;
}

impl AllowedIps {
    /// Carries the changes out for `key`: all that it holds afterwards, and who lost some to it.
    fn assign(
        &mut self,
        key: PublicKey,
        replace: bool,
        changes: &[AllowedIp],
    ) -> (Vec<IpNetwork>, Vec<PublicKey>) {
        if replace {
            self.forget(&key);
        }
        self.of_peer.entry(key).or_default();
        let mut losers = Vec::new();
        for change in changes {
            match *change {
                AllowedIp::Add(prefix) => {
                    if let Some(loser) = self.holder.insert(prefix, key).filter(|h| *h != key) {
                        if let Some(held) = self.of_peer.get_mut(&loser) {
                            held.remove(&prefix);
                        }
                        if !losers.contains(&loser) {
                            losers.push(loser);
                        }
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
        let held = self.of_peer.get(&key).into_iter().flatten().copied();
        (held.collect(), losers)
    }

    fn forget(&mut self, key: &PublicKey) {
        for prefix in self.of_peer.remove(key).into_iter().flatten() {
            self.holder.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests;
