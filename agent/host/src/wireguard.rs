//! A WireGuard device's own settings: key, port and peers, kernel and user space alike.
//!
//! The one adapter of `wireguard-control`, which configures the kernel's device but leaves these to its caller: it gives a
//! peer of many allowed IPs twice (the kernel splits it over messages), refuses a peer that fills more than one message, and
//! keeps keys in memory that it does not wipe. Devices in user space are spoken to by `uapi`: the library starts
//! `wireguard-go` where a socket is dead, and drops what an error was. Whatever reads here blocks.

pub(crate) mod uapi;

use std::{
    collections::BTreeMap,
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use tokio::task::spawn_blocking;
use wg_overlay_mesh::{DEVICE, Implementation, Link, ObservedPeer, PeerChange, PublicKey};
use wireguard_control::{
    AllowedIp, Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo,
};
use zeroize::{Zeroize, Zeroizing};

use crate::PrivateKey;
use uapi::set;

/// Allowed IPs in one message of 8 KiB: of IPv6 each takes 40 bytes, and the peer itself up to 150.
const ALLOWED_IPS: usize = 180;

/// What a device holds.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) listen_port: u16,
    pub(crate) peers: Vec<(PublicKey, ObservedPeer)>,
}

/// Where a user-space device listens for its settings.
pub(crate) fn socket_path(device: Link) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{device}.sock"))
}

/// Whether a process answers at the device's socket; a file left by one that ended does not.
pub(crate) fn socket_is_live(device: Link) -> bool {
    UnixStream::connect(socket_path(device)).is_ok()
}

/// Which device, and who implements it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target(pub(crate) Link, pub(crate) Implementation);

/// Reads key, port and peers of the device.
pub(crate) fn read(target: Target) -> io::Result<Settings> {
    match target.1 {
        Implementation::Kernel => read_kernel(target),
        Implementation::UserSpace => uapi::read(target.0),
    }
}

fn read_kernel(target: Target) -> io::Result<Settings> {
    let mut device = device(target)?;
    wipe(&mut device.private_key);
    let public_key = device.public_key.as_ref().and_then(|key| PublicKey::from_bytes(key.0).ok());
    let now = SystemTime::now();
    let mut peers = BTreeMap::<PublicKey, ObservedPeer>::new();
    for mut info in std::mem::take(&mut device.peers) {
        let preshared = info.config.preshared_key.as_ref().is_some_and(|key| *key != Key::zero());
        wipe(&mut info.config.preshared_key);
        match PublicKey::from_bytes(info.config.public_key.0) {
            Ok(key) => merge(peers.entry(key).or_default(), &info, preshared, now),
            Err(error) => {
                tracing::warn!(device = %target.0, %error, "a peer that no node can be is left alone")
            }
        }
    }
    let listen_port = device.listen_port.unwrap_or_default();
    Ok(Settings { public_key, listen_port, peers: peers.into_iter().collect() })
}

/// The device's private key, if it has one.
pub(crate) fn read_private_key(target: Target) -> io::Result<Option<PrivateKey>> {
    let key = device(target)?.private_key.filter(|key| *key != Key::zero());
    key.map(PrivateKey::take).transpose().map_err(io::Error::other)
}

/// The listen ports of the kernel's other WireGuard devices.
pub(crate) fn other_ports() -> Vec<(String, u16)> {
    let names = Device::list(Backend::Kernel).unwrap_or_default();
    let ports = names.into_iter().filter_map(|name| {
        let mut device = Device::get(&name, Backend::Kernel).ok()?;
        wipe(&mut device.private_key);
        Some((name.to_string(), device.listen_port?))
    });
    ports.filter(|(name, _)| name != DEVICE).collect()
}

/// Sets the key, and takes all peers away: a session is of the key that it began with.
pub(crate) async fn set_key(target: Target, key: &PrivateKey) -> io::Result<()> {
    let update = || DeviceUpdate::new().set_private_key(key.to_library()).replace_peers();
    apply(target, || set::key(key), update).await
}

pub(crate) async fn set_listen_port(target: Target, port: u16) -> io::Result<()> {
    apply(target, || set::listen_port(port).into(), || DeviceUpdate::new().set_listen_port(port)).await
}

/// Adds and changes peers, in as few messages as they fit into. Gives the failed ones by position.
pub(crate) async fn set_peers(target: Target, changes: &[PeerChange]) -> Vec<(usize, io::Error)> {
    each(target, changes, set::peer, configs).await
}

/// Removes peers, in as few messages as they fit into. Gives the failed ones by position.
pub(crate) async fn remove_peers(target: Target, keys: &[PublicKey]) -> Vec<(usize, io::Error)> {
    let removal = |key: &PublicKey| vec![PeerConfigBuilder::new(&library_key(key)).remove()];
    each(target, keys, set::removal, removal).await
}

/// All in one update; where that fails, one by one, to tell whose fault it is.
async fn each<T>(
    target: Target,
    items: &[T],
    lines: impl Fn(&T) -> String,
    configs: impl Fn(&T) -> Vec<PeerConfigBuilder>,
) -> Vec<(usize, io::Error)> {
    let apply = async |items: &[T]| {
        let update = || DeviceUpdate::new().add_peers(&items.iter().flat_map(&configs).collect::<Vec<_>>());
        apply(target, || items.iter().map(&lines).collect::<String>().into(), update).await
    };
    if apply(items).await.is_ok() {
        return Vec::new();
    }
    let mut failed = Vec::new();
    for (at, item) in items.iter().enumerate() {
        if let Err(error) = apply(std::slice::from_ref(item)).await {
            failed.push((at, error));
        }
    }
    failed
}

fn configs(change: &PeerChange) -> Vec<PeerConfigBuilder> {
    let key = library_key(&change.public_key);
    let removed = change.renew.then(|| PeerConfigBuilder::new(&key).remove());
    let mut peer = PeerConfigBuilder::new(&key);
    if let Some(endpoint) = change.endpoint {
        peer = peer.set_endpoint(endpoint);
    }
    if let Some(seconds) = change.keepalive {
        peer = peer.set_persistent_keepalive_interval(seconds);
    }
    if change.clear_preshared_key {
        peer = peer.unset_preshared_key();
    }
    if change.replace_allowed_ips.is_some() {
        peer = peer.replace_allowed_ips();
    }
    let nets = change.replace_allowed_ips.as_ref().unwrap_or(&change.add_allowed_ips);
    let nets: Vec<AllowedIp> =
        nets.iter().map(|net| AllowedIp { address: net.addr(), cidr: net.prefix_len() }).collect();
    let mut parts = nets.chunks(ALLOWED_IPS);
    let first = peer.add_allowed_ips(parts.next().unwrap_or_default());
    let rest = parts.map(|part| PeerConfigBuilder::new(&key).add_allowed_ips(part));
    removed.into_iter().chain([first]).chain(rest).collect()
}

/// Adds what one entry of a dump says. A peer's later entries hold further allowed IPs and nothing else.
fn merge(peer: &mut ObservedPeer, info: &PeerInfo, preshared: bool, now: SystemTime) {
    let nets = info.config.allowed_ips.iter().filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok());
    peer.allowed_ips.extend(nets.map(|net| net.trunc()));
    peer.preshared_key |= preshared;
    peer.endpoint = peer.endpoint.or(info.config.endpoint);
    peer.keepalive = peer.keepalive.max(info.config.persistent_keepalive_interval.unwrap_or_default());
    peer.received = peer.received.max(info.stats.rx_bytes);
    peer.sent = peer.sent.max(info.stats.tx_bytes);
    peer.handshake_age = peer.handshake_age.or(info.stats.last_handshake_time.map(|then| age(now, then)));
}

/// A clock that was set back makes a handshake of the future: it counts as one of this moment.
fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

fn device(target: Target) -> io::Result<Device> {
    Device::get(&interface(target)?, backend(target)?)
}

/// Changes a device: one in user space by these lines, the kernel's by the library's update.
async fn apply(
    target: Target,
    lines: impl FnOnce() -> Zeroizing<String>,
    update: impl FnOnce() -> DeviceUpdate,
) -> io::Result<()> {
    match target.1 {
        Implementation::UserSpace => set::set(target.0, &lines()).await,
        Implementation::Kernel => {
            let (update, name) = (update(), interface(target)?);
            let work = move || update.apply(&name, Backend::Kernel);
            spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
        }
    }
}

fn interface(target: Target) -> io::Result<InterfaceName> {
    Ok(target.0.name().parse::<InterfaceName>()?)
}

/// The library's backend. Its user-space one starts `wireguard-go` where nothing answers at the socket.
fn backend(Target(device, implementation): Target) -> io::Result<Backend> {
    match implementation {
        Implementation::Kernel => Ok(Backend::Kernel),
        Implementation::UserSpace => UnixStream::connect(socket_path(device)).map(|_| Backend::Userspace),
    }
}

fn library_key(key: &PublicKey) -> Key {
    Key(*key.as_bytes())
}

fn wipe(key: &mut Option<Key>) {
    if let Some(key) = key {
        key.0.zeroize();
    }
    *key = None;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn change(nets: BTreeSet<IpNet>, replace: bool) -> PeerChange {
        PeerChange {
            device: Link::Device,
            public_key: PrivateKey::generate().public_key(),
            node: "node".into(),
            add: true,
            renew: false,
            endpoint: None,
            add_allowed_ips: if replace { BTreeSet::new() } else { nets.clone() },
            replace_allowed_ips: replace.then_some(nets),
            keepalive: None,
            clear_preshared_key: false,
        }
    }

    fn info(key: &Key, nets: &[&str]) -> PeerInfo {
        let mut info = PeerInfo::from_public_key(key.clone());
        info.config.allowed_ips = nets.iter().map(|net| net.parse().unwrap()).collect();
        info
    }

    proptest! {
        #[test]
        fn a_large_peer_is_split_and_only_its_first_part_replaces(count in 0u16..1000, replace: bool) {
            let net = |n: u16| IpNet::from(std::net::IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]));
            let nets: BTreeSet<IpNet> = (0..count).map(net).collect();
            let parts = configs(&change(nets.clone(), replace));
            let texts: Vec<String> = parts.iter().map(|part| format!("{part:?}")).collect();
            let held = |text: &String| text.matches("/128").count();
            prop_assert_eq!(texts.iter().map(held).sum::<usize>(), nets.len());
            for (at, text) in texts.iter().enumerate() {
                prop_assert_eq!(text.contains("replace_allowed_ips: true"), replace && at == 0);
                // The library's limit: 8 KiB less two headers. An IPv6 prefix takes 40 bytes, the peer's rest 150.
                prop_assert!(held(text) * 40 + 150 <= 8192 - 20);
            }
        }
    }

    #[test]
    fn a_peer_that_the_kernel_gives_in_parts_is_one() {
        let key = Key::generate_private().get_public();
        let now = SystemTime::now();
        let mut first = info(&key, &["10.0.0.0/24"]);
        first.config.endpoint = Some("192.0.2.1:51820".parse().unwrap());
        first.config.persistent_keepalive_interval = Some(25);
        first.stats.rx_bytes = 7;
        first.stats.last_handshake_time = Some(now - Duration::from_secs(9));
        let mut peer = ObservedPeer::default();
        merge(&mut peer, &first, false, now);
        merge(&mut peer, &info(&key, &["10.0.1.0/24"]), false, now);
        assert_eq!(peer.allowed_ips.len(), 2);
        assert_eq!(peer.endpoint, first.config.endpoint);
        assert_eq!((peer.keepalive, peer.received), (25, 7));
        assert_eq!(peer.handshake_age, Some(Duration::from_secs(9)));
    }

    #[test]
    fn a_handshake_of_the_future_is_of_this_moment() {
        let now = SystemTime::now();
        assert_eq!(age(now, now + Duration::from_secs(86_400)), Duration::ZERO);
    }
}
