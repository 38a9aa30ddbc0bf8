//! A pod's port in the nftables table `bridge wg-overlay`: added before the pod's link goes up, looked for by CHECK.
//!
//! Over a socket of its own, one datagram for each. It is not the agent's (agent/host/src/nft/nfnetlink.rs), which does much
//! that would only make the plugin larger. Nothing is removed
//! here: the kernel waits for every processor then, so the agent does it, in its own time.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;

use super::error::CniError;
use crate::{
    PodPort,
    nfnetlink::{self, BATCH_BEGIN, BATCH_END, GET_ELEMENTS, NEW_ELEMENTS, NFTABLES, message},
};

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
        message(&mut datagram, BATCH_BEGIN, 0, 0, (0, NFTABLES), |_| {});
        elements(&mut datagram, NEW_ELEMENTS, NLM_F_CREATE, port);
        message(&mut datagram, BATCH_END, 0, 0, (0, NFTABLES), |_| {});
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
        message(datagram, kind, flags, 0, (NFPROTO_BRIDGE, 0), |message| {
            nfnetlink::set(message, set);
            nfnetlink::elements(message, &keys);
        });
    }
}

/// A pod's elements of both families, and a refusal that repeats them, are half of it.
const DATAGRAM: usize = 2048;
/// include/uapi/linux/netfilter.h
const NFPROTO_BRIDGE: u8 = 7;
