//! The life of one device: open everything, run until told to stop or until the link is gone.

use std::future::Future;

use tokio::sync::mpsc;

use crate::{
    engine::Engine,
    error::DeviceError,
    link::LinkWatch,
    tun::Tun,
    uapi::{Control, UapiSocket},
};

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
/// a tokio runtime with I/O and time; packets are carried by two threads of its own.
///
/// # Errors
/// [`DeviceError`]: a bad name or MTU, a device of this name that runs already, or no permission.
pub async fn run(config: DeviceConfig, shutdown: impl Future<Output = ()>) -> Result<(), DeviceError> {
    check(&config)?;
    let name = config.name.as_str();

    // The link first: the kernel hands a TUN link to one process only, so nothing of a running
    // device is touched by a second start.
    let tun = Tun::open(name, config.mtu)?;
    let mut socket = UapiSocket::bind(name).await?;
    let mut link = LinkWatch::start(name).await?;

    let engine = Engine::start(tun, link.mtu())
        .map_err(|source| DeviceError::Start { name: name.to_owned(), source })?;
    tracing::info!(device = name, socket = %socket.path().display(), "the device is ready");

    let (requests, queue) = mpsc::channel(1);
    let mut control = Control::new(engine);
    tokio::select! {
        () = shutdown => tracing::info!(device = name, "asked to stop; the device ends"),
        () = link.deleted() => tracing::info!(device = name, "link deleted; the device ends"),
        () = socket.serve(requests) => {}
        () = control.run(queue) => {}
    }
    Ok(())
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
