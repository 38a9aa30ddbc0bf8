//! The private key of the device, which no text form leaves but the one for its file.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use wg_overlay_mesh::{KeyError, PublicKey};
use wireguard_control::Key;
use zeroize::{Zeroize, Zeroizing};

/// A Curve25519 private key (RFC 7748), wiped when it is dropped.
#[derive(Clone)]
pub struct PrivateKey {
    secret: Zeroizing<[u8; 32]>,
    public: PublicKey,
}

impl PrivateKey {
    /// A new key from the kernel's random numbers.
    pub fn generate() -> Self {
        loop {
            // No clamped number times the base point is of low order, so this ends at the first turn.
            if let Ok(key) = Self::take(Key::generate_private()) {
                return key;
            }
        }
    }

    /// Parses the base64 form of `wg genkey`, white space around it left out.
    ///
    /// # Errors
    /// [`KeyError`] where the text is not base64 of 32 bytes; the text is not repeated.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let malformed = || KeyError::Malformed(text.chars().count());
        let mut bytes = Zeroizing::new([0; 48]);
        let length = BASE64_STANDARD.decode_slice(text, bytes.as_mut_slice()).map_err(|_| malformed())?;
        let key = bytes.get(..length).and_then(|b| <[u8; 32]>::try_from(b).ok()).ok_or_else(malformed)?;
        Self::take(Key(key))
    }

    /// The base64 form, for the key's file alone.
    pub fn to_base64(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(44));
        BASE64_STANDARD.encode_string(self.secret.as_slice(), &mut text);
        text
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Takes a key of the library, which does not wipe its own.
    pub(crate) fn take(mut key: Key) -> Result<Self, KeyError> {
        let public = <[u8; 32]>::try_from(key.get_public().as_bytes()).map_err(|_| KeyError::Malformed(0));
        let taken = Self { secret: Zeroizing::new(key.0), public: PublicKey::from_bytes(public?)? };
        key.0.zeroize();
        Ok(taken)
    }

    /// The key itself, for a device.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    pub(crate) fn to_library(&self) -> Key {
        Key(*self.secret)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_round_trips_and_gives_the_public_half_that_wg_gives() {
        let text = "SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=";
        let key = PrivateKey::from_base64(&format!("{text}\n")).unwrap();
        assert_eq!(key.to_base64().as_str(), text);
        assert_eq!(key.public_key().to_string(), "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=");
    }

    #[test]
    fn what_is_no_key_is_refused_without_repeating_it() {
        for text in ["", "secret", "SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM", &"A".repeat(10_000)] {
            let error = PrivateKey::from_base64(text).unwrap_err();
            assert!(text.is_empty() || !error.to_string().contains(text));
        }
    }

    #[test]
    fn no_debug_text_holds_the_key() {
        let key = PrivateKey::generate();
        assert!(!format!("{key:?} {:?}", Some(&key)).contains(key.to_base64().as_str()));
        assert_ne!(key.public_key(), PrivateKey::generate().public_key());
    }
}
