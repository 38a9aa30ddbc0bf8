//! Public keys: parsed strictly, and refused where no honest device could have made them.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};

/// A Curve25519 public key of a WireGuard device (RFC 7748). Its text form is the base64 that `wg` prints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// Why a text is no usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not base64 of 32 bytes.
    #[error("expected base64 of 32 bytes (44 characters, as `wg pubkey` prints), got {0} characters")]
    Malformed(usize),
    /// A point of low order, zero among them: every private key gives the same shared secret with it.
    #[error("the key is a point of low order, which no device generates")]
    LowOrder,
}

impl PublicKey {
    /// Takes the key from its 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::LowOrder`] for a point whose order divides the cofactor (RFC 7748, section 6.1).
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let mut point = bytes;
        point[31] &= 0x7f; // RFC 7748, section 5: the top bit is ignored
        if LOW_ORDER.contains(&point) { Err(KeyError::LowOrder) } else { Ok(Self(bytes)) }
    }

    /// Parses the base64 text form.
    ///
    /// # Errors
    /// [`KeyError`] where the text is not base64 of 32 bytes or the point is of low order.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed(text.chars().count());
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| malformed())?;
        Self::from_bytes(bytes.try_into().map_err(|_| malformed())?)
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first and last four characters, for tables and log lines.
    pub fn short(&self) -> String {
        let text = self.to_string();
        format!("{}…{}", text.get(..4).unwrap_or_default(), text.get(40..).unwrap_or_default())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The points of small order in little-endian form, non-canonical encodings below 2^255 included
/// (<https://cr.yp.to/ecdh.html>, "validate").
const LOW_ORDER: [[u8; 32]; 7] = {
    let zero = [0u8; 32];
    let mut one = [0u8; 32];
    one[0] = 1;
    let order8a: [u8; 32] = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ];
    let order8b: [u8; 32] = [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ];
    // p - 1, p and p + 1, for p = 2^255 - 19
    let mut p_minus_1 = [0xffu8; 32];
    p_minus_1[0] = 0xec;
    p_minus_1[31] = 0x7f;
    let mut p = p_minus_1;
    p[0] = 0xed;
    let mut p_plus_1 = p_minus_1;
    p_plus_1[0] = 0xee;
    [zero, one, order8a, order8b, p_minus_1, p, p_plus_1]
};

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

    #[test]
    fn the_text_form_round_trips() {
        assert_eq!(PublicKey::parse(GOOD).unwrap().to_string(), GOOD);
        assert_eq!(PublicKey::parse(GOOD).unwrap().short(), "HIgo…ykw=");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "x", "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw", "!!!!", &GOOD.repeat(300)] {
            assert!(matches!(PublicKey::parse(text), Err(KeyError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn a_point_of_low_order_is_refused_whatever_its_top_bit() {
        for mut point in LOW_ORDER {
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder));
            point[31] |= 0x80;
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder));
        }
    }
}
