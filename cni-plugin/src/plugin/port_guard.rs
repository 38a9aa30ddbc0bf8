//! A pod's port in the nftables table `bridge wg-overlay`: added before the pod's link goes up, looked for by CHECK.
//!
//! Over a socket of its own (nfnetlink; include/uapi/linux/netfilter/nf_tables.h), one datagram for each. It is not the
//! agent's (agent/host/src/nft/nfnetlink.rs), which does much that would only make the plugin larger. Nothing is removed
//! here: the kernel waits for every processor then, so the agent does it, in its own time.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;

use super::error::CniError;
use crate::{PodPort, names::TABLE};

/// A socket in the network namespace in which it was opened.
pub(crate) struct PortGuard {
    socket: Socket,
}

impl PortGuard {
    pub(crate) fn open() -> Result<Self, CniError> {
        let socket = Socket::new(NETLINK_NETFILTER).map_err(|e| failed("open an nftables socket", e))?;
        Ok(Self { socket })
    }

    /// Lets a pod send from its link, MAC and addresses. What is there already may be added.
    pub(crate) fn add(&self, port: &PodPort) -> Result<(), CniError> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        message(&mut datagram, BATCH_BEGIN, 0, 0, NFTABLES, |_| {});
        elements(&mut datagram, NEW_ELEMENTS, NLM_F_CREATE, port);
        message(&mut datagram, BATCH_END, 0, 0, NFTABLES, |_| {});
        match self.ask(&datagram) {
            Err(error) if is_absent(&error) => Err(CniError::NoPortGuard),
            other => other.map_err(|e| failed("add the pod's port to the nftables table", e)),
        }
    }

    /// Whether all of that is there.
    pub(crate) fn has(&self, port: &PodPort) -> Result<bool, CniError> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        elements(&mut datagram, GET_ELEMENTS, 0, port);
        match self.ask(&datagram) {
            Err(error) if is_absent(&error) => Ok(false),
            other => other.map(|()| true).map_err(|e| failed("look for the pod's port in nftables", e)),
        }
    }

    /// The kernel answers within the send: the first refusal, or what the last message asked to be told.
    fn ask(&self, datagram: &[u8]) -> io::Result<()> {
        const ERROR: [u8; 2] = 2_u16.to_ne_bytes(); // NLMSG_ERROR of linux/netlink.h, at byte 4; its code at 16
        self.socket.send(datagram, 0)?;
        let mut answer = Vec::with_capacity(DATAGRAM);
        loop {
            answer.clear();
            self.socket.recv(&mut answer, 0)?;
            let code = answer.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
            match code.filter(|_| answer.get(4..6) == Some(&ERROR)) {
                Some(0) => return Ok(()),
                Some(code) => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                None => {}
            }
        }
    }
}

fn failed(what: &str, source: io::Error) -> CniError {
    CniError::Io { action: what.to_owned(), source }
}

fn is_absent(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOENT)
}

/// A message for each set; the last is acknowledged.
fn elements(datagram: &mut Vec<u8>, kind: u16, flags: u16, port: &PodPort) {
    let mut sets = port.elements().into_iter().filter(|(_, keys)| !keys.is_empty()).peekable();
    while let Some((set, keys)) = sets.next() {
        let flags = if sets.peek().is_none() { flags | NLM_F_ACK } else { flags };
        message(datagram, kind, flags, NFPROTO_BRIDGE, 0, |message| {
            attribute(message, SET_ELEM_LIST_TABLE, |out| name(out, TABLE));
            attribute(message, SET_ELEM_LIST_SET, |out| name(out, set));
            attribute(message, SET_ELEM_LIST_ELEMENTS | NESTED, |list| {
                for key in keys {
                    attribute(list, LIST_ELEM | NESTED, |element| {
                        attribute(element, SET_ELEM_KEY | NESTED, |out| {
                            attribute(out, DATA_VALUE, |value| value.extend(key));
                        });
                    });
                }
            });
        });
    }
}

/// With the header of all nfnetlink messages: family, version 0, resource.
fn message(
    datagram: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let begin = datagram.len();
    datagram.extend([0; 4]);
    datagram.extend(kind.to_ne_bytes());
    datagram.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    datagram.extend([0; 8]);
    datagram.extend([family, 0]);
    datagram.extend(resource.to_be_bytes());
    body(datagram);
    let length = u32::try_from(datagram.len() - begin).unwrap_or(u32::MAX);
    put(datagram, begin, &length.to_ne_bytes());
}

/// Length, kind, what `body` writes, and zeros up to a multiple of 4 bytes.
fn attribute(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    body(out);
    let length = u16::try_from(out.len() - begin).unwrap_or(u16::MAX);
    put(out, begin, &length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

fn name(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = out.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// A pod's elements of both families, and a refusal that repeats them, are half of it.
const DATAGRAM: usize = 2048;
const NESTED: u16 = 1 << 15;
/// include/uapi/linux/netfilter.h
const NFPROTO_BRIDGE: u8 = 7;
/// include/uapi/linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_ELEMENTS: u16 = NFTABLES << 8 | 12;
const GET_ELEMENTS: u16 = NFTABLES << 8 | 13;
const SET_ELEM_LIST_TABLE: u16 = 1;
const SET_ELEM_LIST_SET: u16 = 2;
const SET_ELEM_LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const SET_ELEM_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
