//! Netlink attributes, written into a message.

/// Marks an attribute that holds others (include/uapi/linux/netlink.h).
pub(super) const NLA_F_NESTED: u16 = 1 << 15;

/// A name as the kernel takes it: a string with its closing zero.
pub(super) fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Appends an attribute: length, type, what the closure writes, and zeros up to a multiple of 4 bytes.
pub(super) fn nest(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    body(out);
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    put(out, start, &length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

pub(super) fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = out.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}
