//! The life of one device: open everything, run until told to stop or until the link is gone.

use std::future::Future;

use gotatun::{
    device::{Device, DeviceBuilder},
    x25519::StaticSecret,
};
use rustix::rand::GetRandomFlags;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::{
    error::DeviceError,
    link::LinkWatch,
    tun::{self, TunReader, TunWriter},
    uapi::{Control, UapiSocket},
    udp::GsoSocketFactory,
};

/// The transports of our device: UDP with UDP_SEGMENT, and the two halves of the TUN link.
pub(crate) type Transports = (GsoSocketFactory, TunWriter, TunReader);

/// Largest MTU of the link, in bytes: the largest UDP payload over IPv4 (65,507) less WireGuard's
/// 32 bytes of header and tag, rounded down to its padding of 16.
pub const MAX_MTU: u16 = 65_472;

/// Smallest MTU of the link, in bytes: IPv4's own (RFC 791); IPv6 needs 1280 (RFC 8200, 5).
pub const MIN_MTU: u16 = 68;

/// What a user-space device is made of; keys and peers come over its UAPI socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Name of the link, as `wgo0`.
    pub name: String,
    /// MTU of the link at its start, in bytes, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
}

/// Runs the device until `shutdown` resolves or the link is deleted from outside; both are `Ok`.
///
/// The link is left down and without addresses; link and socket are gone when this returns. Needs
/// a tokio runtime with I/O and time, and carries most packets on one with several threads.
///
/// # Errors
/// [`DeviceError`]: a bad name or MTU, a device of this name that runs already, or no permission.
pub async fn run(config: DeviceConfig, shutdown: impl Future<Output = ()>) -> Result<(), DeviceError> {
    check(&config)?;
    let name = config.name.as_str();

    // The link first: the kernel hands a TUN link to one process only, so nothing of a running
    // device is touched by a second start.
    let tun = tun::open(name, config.mtu)?;
    let mut socket = UapiSocket::bind(name).await?;
    let mut link = LinkWatch::start(name).await?;

    let (reader, writer) = tun::split(tun, name, link.mtu());
    let engine =
        start(reader, writer).await.map_err(|source| DeviceError::Start { name: name.to_owned(), source })?;
    tracing::info!(device = name, socket = %socket.path().display(), "the device is ready");

    let (requests, queue) = mpsc::channel(1);
    let mut control = Control::new(engine);
    tokio::select! {
        () = shutdown => tracing::info!(device = name, "asked to stop; the device ends"),
        () = link.deleted() => tracing::info!(device = name, "link deleted; the device ends"),
        () = socket.serve(requests) => {}
        () = control.run(queue) => {}
    }
    control.stop().await;
    Ok(())
}

/// Starts the engine with a key that nobody knows: gotatun takes peers only once it has a key,
/// WireGuard takes them at any time. The UAPI reports no key until one is set.
async fn start(reader: TunReader, writer: TunWriter) -> Result<Device<Transports>, gotatun::device::Error> {
    DeviceBuilder::new()
        .with_private_key(nobodys_key()?)
        .with_udp(GsoSocketFactory::default())
        .with_ip_pair(writer, reader)
        .build()
        .await
}

/// A key of random bytes (getrandom(2)), for a device that has none.
pub(crate) fn nobodys_key() -> Result<StaticSecret, std::io::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    let filled = rustix::rand::getrandom(bytes.as_mut_slice(), GetRandomFlags::empty())?;
    if filled != bytes.len() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(StaticSecret::from(*bytes))
}

fn check(config: &DeviceConfig) -> Result<(), DeviceError> {
    let name = config.name.as_str();
    let bad = |c: char| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%');
    // IFNAMSIZ is 16 with the closing zero; `%` makes a pattern of the name.
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(DeviceError::Name(config.name.clone()));
    }
    if !(MIN_MTU..=MAX_MTU).contains(&config.mtu) {
        return Err(DeviceError::Mtu(config.mtu));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, mtu: u16) -> DeviceConfig {
        DeviceConfig { name: name.to_owned(), mtu }
    }

    #[test]
    fn a_name_the_kernel_would_refuse_or_expand_is_refused() {
        for name in ["", ".", "..", "a/b", "wg%d", "a b", "a\tb", "wg:0", "sixteen-letters-", "wgö"] {
            assert!(matches!(check(&config(name, 1420)), Err(DeviceError::Name(_))), "{name:?}");
        }
        assert!(check(&config("fifteen-letters", 1420)).is_ok());
    }

    #[test]
    fn an_mtu_outside_the_limits_is_refused() {
        for mtu in [0, MIN_MTU - 1, MAX_MTU + 1, u16::MAX] {
            assert!(matches!(check(&config("wgo0", mtu)), Err(DeviceError::Mtu(m)) if m == mtu));
        }
        for mtu in [MIN_MTU, 1280, 1420, 8920, MAX_MTU] {
            assert!(check(&config("wgo0", mtu)).is_ok(), "{mtu}");
        }
    }
}
