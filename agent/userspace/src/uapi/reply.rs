//! The answer to `get=1`: the device and its peers as text.

use std::{
    fmt::{self, Write},
    time::{Duration, SystemTime},
};

use gotatun::device::{Device, configure::PeerStats};
use zeroize::Zeroizing;

use super::errno_line;
use crate::device::Transports;

/// Bytes of a usual peer in the answer; the text must not grow by copies, it holds secrets.
const PEER_SIZE: usize = 512;

/// The whole configuration. `has_key` is false while the engine's key is one that nobody set.
pub(super) async fn describe(engine: &Device<Transports>, has_key: bool) -> Zeroizing<String> {
    let (private_key, port, mark, mut peers) = engine
        .read(async |device| {
            let key = device.private_key().filter(|_| has_key).cloned();
            (key, device.listen_port(), device.fwmark(), device.peers().await)
        })
        .await;
    peers.sort_unstable_by_key(|peer| peer.peer.public_key.to_bytes());

    let now = SystemTime::now();
    let mut text = Zeroizing::new(String::with_capacity(PEER_SIZE * (1 + peers.len())));
    if let Some(key) = private_key {
        line(&mut text, "private_key", Hex(&Zeroizing::new(key.to_bytes())));
    }
    line(&mut text, "listen_port", port);
    if let Some(mark) = mark.filter(|mark| *mark != 0) {
        line(&mut text, "fwmark", mark);
    }
    for peer in &peers {
        describe_peer(&mut text, peer, now);
    }
    text.push_str(&errno_line(Ok(())));
    text
}

fn describe_peer(text: &mut String, peer: &PeerStats, now: SystemTime) {
    let PeerStats { peer, stats, .. } = peer;
    line(text, "public_key", Hex(peer.public_key.as_bytes()));
    if let Some(key) = &peer.preshared_key {
        line(text, "preshared_key", Hex(key));
    }
    line(text, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        line(text, "endpoint", endpoint);
    }
    let handshake = stats
        .last_handshake
        .and_then(|ago| now.checked_sub(ago)?.duration_since(SystemTime::UNIX_EPOCH).ok())
        .unwrap_or(Duration::ZERO);
    line(text, "last_handshake_time_sec", handshake.as_secs());
    line(text, "last_handshake_time_nsec", handshake.subsec_nanos());
    line(text, "tx_bytes", stats.tx_bytes);
    line(text, "rx_bytes", stats.rx_bytes);
    line(text, "persistent_keepalive_interval", peer.keepalive.unwrap_or(0));
    for prefix in &peer.allowed_ips {
        line(text, "allowed_ip", prefix);
    }
}

fn line(text: &mut String, key: &str, value: impl fmt::Display) {
    // A String takes every text.
    let _ = writeln!(text, "{key}={value}");
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
