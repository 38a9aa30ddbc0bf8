//! Messages of nfnetlink, written into a datagram (include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h). The plugin's
//! and the agent's are written here; each has a socket of its own.

use netlink_packet_core::NLM_F_REQUEST;

use crate::names::TABLE;

/// Appends a message with the header of all: family, version 0, resource.
pub fn message(
    datagram: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    body: impl FnOnce(&mut Vec<u8>),
) {
    let begin = datagram.len();
    datagram.extend([0; 4]);
    datagram.extend(kind.to_ne_bytes());
    datagram.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    datagram.extend(sequence.to_ne_bytes());
    datagram.extend([0; 4]);
    datagram.extend([family, 0]);
    datagram.extend(resource.to_be_bytes());
    body(datagram);
    let length = u32::try_from(datagram.len() - begin).unwrap_or(u32::MAX);
    put(datagram, begin, &length.to_ne_bytes());
}

/// Appends an attribute: length, kind, what the closure writes, and zeros up to a multiple of 4 bytes.
pub fn attribute(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    body(out);
    let length = u16::try_from(out.len() - begin).unwrap_or(u16::MAX);
    put(out, begin, &length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends a name as the kernel takes it: a string with its closing zero.
pub fn name(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

/// Appends which set of our table a message is about.
pub fn set(out: &mut Vec<u8>, set: &str) {
    attribute(out, SET_ELEM_LIST_TABLE, |out| name(out, TABLE));
    attribute(out, SET_ELEM_LIST_SET, |out| name(out, set));
}

/// Appends elements of a set by their keys.
pub fn elements<'a>(out: &mut Vec<u8>, keys: impl IntoIterator<Item = &'a Vec<u8>>) {
    attribute(out, SET_ELEM_LIST_ELEMENTS | NESTED, |list| {
        for key in keys {
            attribute(list, LIST_ELEM | NESTED, |element| {
                attribute(element, SET_ELEM_KEY | NESTED, |out| {
                    attribute(out, DATA_VALUE, |value| value.extend(key));
                });
            });
        }
    });
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = out.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// Marks an attribute that holds others (include/uapi/linux/netlink.h).
const NESTED: u16 = 1 << 15;
/// `NFNL_MSG_BATCH_BEGIN`.
pub const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
pub const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
pub const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWSETELEM`.
pub const NEW_ELEMENTS: u16 = NFTABLES << 8 | 12;
/// `NFT_MSG_GETSETELEM`.
pub const GET_ELEMENTS: u16 = NFTABLES << 8 | 13;
const SET_ELEM_LIST_TABLE: u16 = 1;
const SET_ELEM_LIST_SET: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
pub const SET_ELEM_LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
/// `NFTA_SET_ELEM_KEY`.
pub const SET_ELEM_KEY: u16 = 1;
/// `NFTA_DATA_VALUE`.
pub const DATA_VALUE: u16 = 1;
