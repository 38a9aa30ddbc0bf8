//! Changing a user-space device over its socket: the requests of WireGuard's cross-platform interface
//! (wireguard.com/xplatform), on a connection that no thread waits for.

use std::{
    fmt::Display,
    io::{self, ErrorKind},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use wg_overlay_mesh::{Link, PeerChange, PublicKey};
use zeroize::Zeroizing;

use super::{invalid, outcome};
use crate::{PrivateKey, wireguard::socket_path};

/// Longer than any answer: `errno=`, a number and two ends of lines.
const ANSWER: usize = 32;

/// Has the device carry out these lines. Those before a faulty one may have been carried out.
pub(crate) async fn set(device: Link, lines: &str) -> io::Result<()> {
    let mut socket = UnixStream::connect(socket_path(device)).await?;
    let request = Zeroizing::new(["set=1\n", lines, "\n"].concat());
    socket.write_all(request.as_bytes()).await?;
    let (mut answer, mut filled) = ([0; ANSWER], 0);
    loop {
        let read = socket.read(answer.get_mut(filled..).unwrap_or_default()).await?;
        filled += read;
        match answer.get(..filled).unwrap_or_default() {
            whole if whole.ends_with(b"\n\n") => return answered(whole),
            _ if read == 0 => {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the device's answer has no end"));
            }
            _ => {}
        }
    }
}

fn answered(answer: &[u8]) -> io::Result<()> {
    let text = std::str::from_utf8(answer).map_err(io::Error::other)?;
    outcome(text.trim_end().strip_prefix("errno=").ok_or_else(|| invalid("an answer to a change"))?)
}

/// The lines of a new private key, with which all peers go: a session is of the key that it began with.
pub(crate) fn key(key: &PrivateKey) -> Zeroizing<String> {
    let secret = Zeroizing::new(hex::encode(key.secret()));
    Zeroizing::new(["private_key=", &secret, "\nreplace_peers=true\n"].concat())
}

/// The line of a listen port.
pub(crate) fn listen_port(port: u16) -> String {
    format!("listen_port={port}\n")
}

/// The lines of a peer's change.
pub(crate) fn peer(change: &PeerChange) -> String {
    let mut text = if change.renew { removal(&change.public_key) } else { String::new() };
    let mut put = |key: &str, value: &dyn Display| text.extend([key, "=", &value.to_string(), "\n"]);
    put("public_key", &hex::encode(change.public_key.as_bytes()));
    change.endpoint.iter().for_each(|endpoint| put("endpoint", endpoint));
    change.keepalive.iter().for_each(|seconds| put("persistent_keepalive_interval", seconds));
    if change.clear_preshared_key {
        put("preshared_key", &hex::encode([0; 32]));
    }
    if change.replace_allowed_ips.is_some() {
        put("replace_allowed_ips", &true);
    }
    let nets = change.replace_allowed_ips.as_ref().unwrap_or(&change.add_allowed_ips);
    nets.iter().for_each(|net| put("allowed_ip", net));
    text
}

/// The lines that remove a peer.
pub(crate) fn removal(key: &PublicKey) -> String {
    format!("public_key={}\nremove=true\n", hex::encode(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_what_changes_and_nothing_else() {
        let key = PublicKey::from_bytes([0xab; 32]).unwrap();
        let mut change = PeerChange {
            device: Link::Device,
            public_key: key,
            node: "node".into(),
            add: true,
            renew: false,
            endpoint: None,
            add_allowed_ips: ["10.244.1.0/24", "fd00:244:0:1::/64"].map(|net| net.parse().unwrap()).into(),
            replace_allowed_ips: None,
            keepalive: None,
            clear_preshared_key: false,
        };
        let name = format!("public_key={}\n", "ab".repeat(32));
        let added = "allowed_ip=10.244.1.0/24\nallowed_ip=fd00:244:0:1::/64\n";
        assert_eq!(peer(&change), format!("{name}{added}"));
        change.endpoint = Some("[2001:db8::7]:51820".parse().unwrap());
        change.keepalive = Some(25);
        change.clear_preshared_key = true;
        change.replace_allowed_ips = Some(std::mem::take(&mut change.add_allowed_ips));
        change.renew = true;
        let none = "00".repeat(32);
        assert_eq!(
            peer(&change),
            format!(
                "{name}remove=true\n{name}endpoint=[2001:db8::7]:51820\npersistent_keepalive_interval=25\n\
                 preshared_key={none}\nreplace_allowed_ips=true\n{added}"
            )
        );
    }

    #[test]
    fn only_errno_0_is_a_success() {
        assert!(answered(b"errno=0\n\n").is_ok());
        assert_eq!(answered(b"errno=-98\n\n").unwrap_err().kind(), ErrorKind::AddrInUse);
        for text in ["\n\n", "errno=\n\n", "errno=99999999999\n\n", "\u{fffd}\n\n", "ok\n\n"] {
            assert!(answered(text.as_bytes()).is_err(), "{text}");
        }
    }
}
