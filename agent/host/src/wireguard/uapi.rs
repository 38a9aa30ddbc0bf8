//! A user-space device, over its socket. Reading it: the text of WireGuard's cross-platform interface
//! (wireguard.com/xplatform), line by line as it comes.
//!
//! It stands apart from the library because five thousand peers are two megabytes of text: the library reads 8 KiB at a
//! time, which has the device and the agent take turns, and makes a list of each line. Here the private key is wiped too.

pub(super) mod set;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    str::FromStr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use wg_overlay_mesh::{Link, ObservedPeer, PublicKey};
use wireguard_control::Key;
use zeroize::{Zeroize, Zeroizing};

use super::{Settings, age, socket_path};
use crate::PrivateKey;

/// As much as the device may write before it waits for us.
const BUFFER: usize = 128 * 1024;

/// Key, port and peers of the device.
pub(super) fn read(device: Link) -> io::Result<Settings> {
    let mut socket = UnixStream::connect(socket_path(device))?;
    socket.write_all(b"get=1\n\n")?;
    parse(socket, SystemTime::now())
}

pub(crate) fn parse(mut source: impl Read, now: SystemTime) -> io::Result<Settings> {
    let mut reader = Reader { settings: Settings::default(), peer: None, now };
    let mut buffer = Zeroizing::new(vec![0; BUFFER]);
    let mut filled = 0;
    loop {
        let read = source.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the device's answer has no end"));
        }
        let held = buffer.get(..filled + read).unwrap_or_default();
        let whole = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in held.get(..whole).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            match line.trim_ascii_end() {
                [] => return Ok(reader.finish()),
                line => reader.take(line)?,
            }
        }
        filled = held.len() - whole;
        buffer.copy_within(whole..whole + filled, 0);
    }
}

struct Reader {
    settings: Settings,
    /// The peer that the lines are about; without a key for one that no node can be.
    peer: Option<(Option<PublicKey>, ObservedPeer)>,
    now: SystemTime,
}

impl Reader {
    fn take(&mut self, line: &[u8]) -> io::Result<()> {
        let line = std::str::from_utf8(line).map_err(io::Error::other)?;
        let (key, value) = line.split_once('=').ok_or_else(|| invalid("a line without `=`"))?;
        match (key, &mut self.peer) {
            ("private_key", _) => {
                let mut secret = bytes(value)?;
                // all zeros: there is none
                if secret != [0; 32] {
                    let key = PrivateKey::take(Key(secret)).map_err(io::Error::other)?;
                    self.settings.public_key = Some(key.public_key());
                }
                secret.zeroize();
            }
            ("listen_port", _) => self.settings.listen_port = number(key, value)?,
            ("public_key", _) => {
                self.end_peer();
                let known = PublicKey::from_bytes(bytes(value)?);
                if let Err(error) = &known {
                    tracing::warn!(%error, "a peer that no node can be is left alone");
                }
                self.peer = Some((known.ok(), ObservedPeer::default()));
            }
            ("errno", _) => outcome(value)?,
            ("preshared_key", Some((_, peer))) => {
                let mut secret = bytes(value)?;
                peer.preshared_key = secret != [0; 32];
                secret.zeroize();
            }
            ("endpoint", Some((_, peer))) => peer.endpoint = value.parse::<SocketAddr>().ok(),
            ("allowed_ip", Some((_, peer))) => {
                peer.allowed_ips.insert(number::<IpNet>(key, value)?.trunc());
            }
            ("persistent_keepalive_interval", Some((_, peer))) => peer.keepalive = number(key, value)?,
            ("rx_bytes", Some((_, peer))) => peer.received = number(key, value)?,
            ("tx_bytes", Some((_, peer))) => peer.sent = number(key, value)?,
            ("last_handshake_time_sec", Some((_, peer))) => {
                let seconds = Some(number(key, value)?).filter(|seconds| *seconds > 0);
                let then = seconds.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
                peer.handshake_age = then.map(|then| age(self.now, then));
            }
            _ => {}
        }
        Ok(())
    }

    fn end_peer(&mut self) {
        if let Some((Some(key), peer)) = self.peer.take() {
            self.settings.peers.push((key, peer));
        }
    }

    fn finish(mut self) -> Settings {
        self.end_peer();
        self.settings
    }
}

fn number<T: FromStr>(key: &str, value: &str) -> io::Result<T> {
    value.parse().map_err(|_| invalid(key))
}

/// What a device's `errno` says. Those in Go give the kernel's numbers with a minus, others without.
fn outcome(errno: &str) -> io::Result<()> {
    match number::<i32>("errno", errno)?.saturating_abs() {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn bytes(text: &str) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| invalid("a key"))?;
    Ok(key)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the device's answer: {what} is malformed"))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    /// Gives so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (now, later) = self.0.split_at(self.1.min(self.0.len()).min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    prop_compose! {
        fn peer()(
            port in 1u16..,
            nets in proptest::collection::btree_set(any::<u8>(), 0..3),
            keepalive: u16, preshared_key: bool, age in proptest::option::of(0..1000u64), received: u64, sent: u64,
        ) -> ObservedPeer {
            ObservedPeer {
                endpoint: Some(SocketAddr::from(([192, 0, 2, 1], port))),
                allowed_ips: nets.into_iter().map(|n| format!("10.0.{n}.0/24").parse().unwrap()).collect(),
                handshake_age: age.map(Duration::from_secs),
                keepalive, preshared_key, received, sent,
                ..ObservedPeer::default()
            }
        }
    }

    fn text(key: &[u8; 32], peer: &ObservedPeer, now: SystemTime) -> String {
        let hex = |bytes: &[u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
        let ObservedPeer { endpoint, keepalive, received, sent, .. } = peer;
        let then = peer.handshake_age.map_or(SystemTime::UNIX_EPOCH, |age| now - age);
        let seconds = then.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut text = format!(
            "public_key={}\npreshared_key={}\nprotocol_version=1\nendpoint={}\nlast_handshake_time_sec={seconds}\n\
             last_handshake_time_nsec=0\ntx_bytes={sent}\nrx_bytes={received}\npersistent_keepalive_interval={keepalive}\n",
            hex(key),
            hex(&[u8::from(peer.preshared_key); 32]),
            endpoint.unwrap(),
        );
        peer.allowed_ips.iter().for_each(|net| writeln!(text, "allowed_ip={net}").unwrap());
        text
    }

    proptest! {
        #[test]
        fn what_a_device_writes_is_read_in_whatever_pieces(
            peers in btree_map(2u8.., peer(), 0..4), port: u16, piece in 1usize..5000,
        ) {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            let private = "48".repeat(32);
            let mut answer = format!("private_key={private}\nlisten_port={port}\nfwmark=0\n");
            for (key, peer) in &peers {
                answer += &text(&[*key; 32], peer, now);
            }
            answer += "errno=0\n\n";
            let settings = parse(Slow(answer.as_bytes(), piece), now).unwrap();
            prop_assert_eq!(settings.listen_port, port);
            prop_assert_eq!(settings.public_key, PrivateKey::take(Key([0x48; 32])).ok().map(|key| key.public_key()));
            let read: Vec<_> = settings.peers.into_iter().map(|(key, peer)| (key.as_bytes()[0], peer)).collect();
            prop_assert_eq!(read, peers.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_answer_panics(answer: Vec<u8>) {
            let _any = parse(Slow(&answer, 7), SystemTime::UNIX_EPOCH);
        }
    }

    #[test]
    fn a_refusal_a_torn_answer_and_an_endless_line_are_errors() {
        let now = SystemTime::UNIX_EPOCH;
        for text in ["errno=13\n\n", "errno=-13\n\n"] {
            assert_eq!(parse(Slow(text.as_bytes(), 3), now).unwrap_err().raw_os_error(), Some(13));
        }
        assert_eq!(parse(Slow(b"listen_port=1\n", 3), now).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(parse(Slow(&[b'x'; 2 * BUFFER], BUFFER), now).is_err());
    }
}
