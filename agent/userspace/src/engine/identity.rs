//! Who this device is: its key, and what follows from it.

use std::{io, sync::Arc};

use gotatun::{
    noise::rate_limiter::RateLimiter,
    x25519::{PublicKey, StaticSecret},
};
use rustix::rand::GetRandomFlags;
use zeroize::Zeroizing;

/// Handshakes a second from one address before it has to show by a cookie that it is there.
const HANDSHAKE_RATE: u64 = 100;

/// The keys, and the limit on handshakes that is bound to them.
pub(super) struct Identity {
    pub(super) private: StaticSecret,
    pub(super) public: PublicKey,
    pub(super) limiter: Arc<RateLimiter>,
    /// Whether somebody set the key; else it is nobody's.
    pub(super) is_set: bool,
}

impl Identity {
    pub(super) fn of(private: StaticSecret) -> Self {
        let public = PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKE_RATE));
        Self { private, public, limiter, is_set: true }
    }

    /// A key of random bytes (getrandom(2)), which nobody knows, for a device that has none: WireGuard takes peers at any
    /// time, the protocol's engine once there is a key.
    pub(super) fn nobodys() -> io::Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        let filled = rustix::rand::getrandom(bytes.as_mut_slice(), GetRandomFlags::empty())?;
        if filled != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { is_set: false, ..Self::of(StaticSecret::from(*bytes)) })
    }
}
