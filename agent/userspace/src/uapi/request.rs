//! Requests as text, read into values. Pure; nothing of a request is ever put into an error.

use std::net::SocketAddr;

use gotatun::x25519::{PublicKey, StaticSecret};
use ipnetwork::IpNetwork;
use zeroize::Zeroizing;

/// One request of the configuration protocol.
pub(crate) enum Request {
    /// `get=1`
    Get,
    /// `set=1`
    Set(SetDevice),
}

/// What a `set` changes; `None` leaves it alone.
#[derive(Default)]
pub(crate) struct SetDevice {
    /// A new key, or `Some(None)` to have none.
    pub(super) private_key: Option<Option<StaticSecret>>,
    pub(super) listen_port: Option<u16>,
    /// 0 takes the mark away.
    pub(super) fwmark: Option<u32>,
    pub(super) replace_peers: bool,
    /// In the order given; one peer may come more than once.
    pub(super) peers: Vec<SetPeer>,
}

/// What a `set` changes on one peer.
pub(crate) struct SetPeer {
    pub(super) public_key: PublicKey,
    pub(super) remove: bool,
    pub(super) update_only: bool,
    pub(super) replace_allowed_ips: bool,
    pub(super) preshared_key: Option<Option<Zeroizing<[u8; 32]>>>,
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub(super) keepalive: Option<u16>,
    pub(super) allowed_ips: Vec<AllowedIp>,
}

/// One `allowed_ip` line, host bits cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllowedIp {
    Add(IpNetwork),
    /// `allowed_ip=-PREFIX`
    Remove(IpNetwork),
}

/// A request that is not one of the protocol. Names the key at most, never a value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    #[error("expected `get=1` or `set=1` first")]
    Operation,
    #[error("expected lines of the form key=value")]
    Line,
    #[error("unknown key in a set")]
    Key,
    #[error("{0}: value not understood")]
    Value(&'static str),
}

impl Request {
    /// Reads the lines of one request, without the blank line that ends it.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut lines = text.lines();
        match lines.next() {
            Some("get=1") if lines.next().is_none() => Ok(Self::Get),
            Some("set=1") => {
                let mut set = SetDevice::default();
                for line in lines {
                    let (key, value) = line.split_once('=').ok_or(Malformed::Line)?;
                    set.take(key, value)?;
                }
                Ok(Self::Set(set))
            }
            _ => Err(Malformed::Operation),
        }
    }
}

impl SetDevice {
    fn take(&mut self, key: &str, value: &str) -> Result<(), Malformed> {
        if key == "public_key" {
            let bytes = key_bytes(value).ok_or(Malformed::Value("public_key"))?;
            self.peers.push(SetPeer::new(PublicKey::from(*bytes)));
            return Ok(());
        }
        if let Some(peer) = self.peers.last_mut() {
            return peer.take(key, value);
        }
        match key {
            "private_key" => {
                let bytes = key_bytes(value).ok_or(Malformed::Value("private_key"))?;
                self.private_key = Some(some_key(bytes).map(|bytes| StaticSecret::from(*bytes)));
            }
            "listen_port" => self.listen_port = Some(number(value, "listen_port")?),
            "fwmark" if value.is_empty() => self.fwmark = Some(0),
            "fwmark" => self.fwmark = Some(number(value, "fwmark")?),
            "replace_peers" => self.replace_peers = flag(value, "replace_peers")?,
            _ => return Err(Malformed::Key),
        }
        Ok(())
    }
}

impl SetPeer {
    fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            replace_allowed_ips: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            allowed_ips: Vec::new(),
        }
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Malformed> {
        match key {
            "remove" => self.remove = flag(value, "remove")?,
            "update_only" => self.update_only = flag(value, "update_only")?,
            "replace_allowed_ips" => {
                self.replace_allowed_ips = flag(value, "replace_allowed_ips")?;
                // It replaces what came before it, too (wireguard-go device/uapi.go).
                self.allowed_ips.clear();
            }
            "preshared_key" => {
                let bytes = key_bytes(value).ok_or(Malformed::Value("preshared_key"))?;
                self.preshared_key = Some(some_key(bytes));
            }
            "endpoint" => {
                self.endpoint = Some(value.parse().map_err(|_| Malformed::Value("endpoint"))?);
            }
            "persistent_keepalive_interval" => {
                self.keepalive = Some(number(value, "persistent_keepalive_interval")?);
            }
            "allowed_ip" => self.allowed_ips.push(allowed_ip(value).ok_or(Malformed::Value("allowed_ip"))?),
            "protocol_version" if value == "1" => {}
            "protocol_version" => return Err(Malformed::Value("protocol_version")),
            _ => return Err(Malformed::Key),
        }
        Ok(())
    }
}

/// A key as 64 hexadecimal digits.
fn key_bytes(value: &str) -> Option<Zeroizing<[u8; 32]>> {
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return None;
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// All zeros say "no key".
fn some_key(bytes: Zeroizing<[u8; 32]>) -> Option<Zeroizing<[u8; 32]>> {
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

fn allowed_ip(value: &str) -> Option<AllowedIp> {
    let (prefix, remove) = match value.strip_prefix('-') {
        Some(prefix) => (prefix, true),
        None => (value, false),
    };
    let prefix: IpNetwork = prefix.parse().ok()?;
    let prefix = IpNetwork::new(prefix.network(), prefix.prefix()).ok()?;
    Some(if remove { AllowedIp::Remove(prefix) } else { AllowedIp::Add(prefix) })
}

fn number<T: std::str::FromStr>(value: &str, key: &'static str) -> Result<T, Malformed> {
    value.parse().map_err(|_| Malformed::Value(key))
}

/// A flag is only ever raised.
fn flag(value: &str, key: &'static str) -> Result<bool, Malformed> {
    (value == "true").then_some(true).ok_or(Malformed::Value(key))
}

#[cfg(test)]
mod tests;
