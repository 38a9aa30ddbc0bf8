//! The answer to `get=1`: the device and its peers as text.

use std::{
    fmt::{self, Write},
    time::{Duration, SystemTime},
};

use ipnetwork::IpNetwork;
use zeroize::Zeroizing;

use super::{control::AllowedIps, errno_line};
use crate::engine::{Engine, PeerStatus};

/// Bytes of a usual peer in the answer; the text must not grow by copies, it holds secrets.
const PEER_SIZE: usize = 512;

/// The whole configuration.
pub(super) fn describe(engine: &Engine, allowed: &AllowedIps) -> Zeroizing<String> {
    let peers = engine.peers();
    let now = SystemTime::now();
    let mut text = Zeroizing::new(String::with_capacity(PEER_SIZE * (1 + peers.len())));
    if let Some(key) = engine.private_key() {
        line(&mut text, "private_key", Hex(&Zeroizing::new(key.to_bytes())));
    }
    line(&mut text, "listen_port", engine.listen_port().unwrap_or(0));
    if engine.mark() != 0 {
        line(&mut text, "fwmark", engine.mark());
    }
    for peer in &peers {
        describe_peer(&mut text, peer, allowed.of(&peer.key), now);
    }
    text.push_str(&errno_line(Ok(())));
    text
}

fn describe_peer<'a>(
    text: &mut String,
    peer: &PeerStatus,
    allowed: impl IntoIterator<Item = &'a IpNetwork>,
    now: SystemTime,
) {
    line(text, "public_key", Hex(peer.key.as_bytes()));
    if let Some(key) = &peer.preshared_key {
        line(text, "preshared_key", Hex(key));
    }
    line(text, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        line(text, "endpoint", endpoint);
    }
    let handshake = peer
        .last_handshake
        .and_then(|ago| now.checked_sub(ago)?.duration_since(SystemTime::UNIX_EPOCH).ok())
        .unwrap_or(Duration::ZERO);
    line(text, "last_handshake_time_sec", handshake.as_secs());
    line(text, "last_handshake_time_nsec", handshake.subsec_nanos());
    line(text, "tx_bytes", peer.sent);
    line(text, "rx_bytes", peer.received);
    line(text, "persistent_keepalive_interval", peer.keepalive.unwrap_or(0));
    for prefix in allowed {
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
