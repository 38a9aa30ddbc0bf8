//! What is asked of the nodes at each moment, and at the end.

use wg_overlay_mesh::{Link, ObservedPeer, PublicKey};

use super::{World, number, pairs};
use crate::model::cluster::{key, v4, v6};

impl World {
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

    pub(super) fn device_key(&self, at: usize, link: Link) -> Option<PublicKey> {
        let kernel = &self.machines[at].kernel;
        let device = match link {
            Link::Next => kernel.next.as_ref().map(|next| &next.device),
            _ => kernel.device.as_ref(),
        };
        device.filter(|device| device.up).and_then(|device| device.public_key)
    }

    pub(super) fn peer(&self, at: usize, link: Link, key: &PublicKey) -> Option<&ObservedPeer> {
        let kernel = &self.machines[at].kernel;
        match link {
            Link::Next => kernel.next.as_ref().and_then(|next| next.peers.get(key)),
            _ => kernel.peers.get(key),
        }
    }

    pub(super) fn link(&self, at: usize, net: &ipnet::IpNet) -> Option<Link> {
        self.machines[at].kernel.routes.get(net).and_then(|route| route.through)
    }
}
