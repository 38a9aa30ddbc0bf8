//! The internet checksum (RFC 1071), as a sum that is folded at its end.
//!
//! Sums are taken in the machine's byte order, which the checksum does not mind (RFC 1071, 2.B); only the folded result is
//! put as bytes.

/// `bytes` added to `sum`. Only the last piece of a checksum may have an odd length.
pub(super) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(sum, |sum, word| sum + u64::from(u32::from_ne_bytes(*word)));
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The pseudo-header's part of TCP's and UDP's checksum (RFC 9293, 3.1; RFC 8200, 8.1). `addresses`: both, as they stand in
/// the header.
pub(super) fn pseudo_header(addresses: &[u8], protocol: u8, length: u16) -> u64 {
    let [high, low] = length.to_be_bytes();
    add(add(0, addresses), &[0, protocol, high, low])
}

/// The sum in 16 bits, not yet inverted, as the kernel wants it where it completes the checksum itself.
pub(super) fn fold(mut sum: u64) -> [u8; 2] {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // It has 16 bits by now.
    u16::try_from(sum).unwrap_or(u16::MAX).to_ne_bytes()
}

/// The finished checksum.
pub(super) fn finish(sum: u64) -> [u8; 2] {
    fold(sum).map(|byte| !byte)
}

/// A finished UDP checksum: one that comes out as zero is sent as all ones, since zero means that there is none, which IPv6
/// drops (RFC 768; RFC 8200, 8.1).
pub(super) fn finish_udp(sum: u64) -> [u8; 2] {
    match finish(sum) {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 has it: 16 bits at a time, big-endian.
    fn naive(bytes: &[u8]) -> [u8; 2] {
        let sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let sum = sum + u32::from(word);
            (sum & 0xffff) + (sum >> 16)
        });
        (!u16::try_from(sum).unwrap()).to_be_bytes()
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(finish(add(0, &bytes)), naive(&bytes));
        }

        #[test]
        fn pieces_add_up(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..100_usize) {
            let cut = (2 * cut).min(bytes.len() / 2 * 2);
            let (front, back) = bytes.split_at(cut);
            prop_assert_eq!(finish(add(add(0, front), back)), naive(&bytes));
        }

        #[test]
        fn no_udp_checksum_is_zero(bytes in prop::collection::vec(any::<u8>(), 0..8)) {
            prop_assert_ne!(finish_udp(add(0, &bytes)), [0, 0]);
        }
    }
}
