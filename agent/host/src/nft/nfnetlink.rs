//! The sets' elements, the tables' counters and the generation of all tables, over a netlink socket of our own
//! (nfnetlink; include/uapi/linux/netfilter/nf_tables.h).
//!
//! It stands apart from the `nft` program because one Node's change is one element, and because `nft` reads all elements
//! of a table for its counters: both would cost more than all else of the round. And because the port of a socket that is
//! kept tells our own changes from others' in the events. The kernel answers while a request is being sent, so nothing here
//! waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NetlinkBuffer};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use wg_overlay_cni::nfnetlink::{
    self, BATCH_BEGIN, BATCH_END, GET_ELEMENTS, NEW_ELEMENTS, NFTABLES, attribute, name,
};
use wg_overlay_mesh::{TABLE, UNANSWERED_SETS};

use super::{
    Counters,
    answer::{counter, each_element, generation_id, unanswered_since},
    elements::{BRIDGE, Element, INET, PORT_SETS},
};
use crate::netlink::{ANSWER, split};

/// The tables of a network namespace.
#[derive(Debug)]
pub(super) struct Tables {
    socket: Socket,
    port: u32,
    sequence: u32,
}

/// Elements in one transaction: of a pod's IPv6 each takes 52 bytes, an attribute holds 64 KiB, a socket's buffer 208 KiB.
const TRANSACTION: usize = 1200;

type Change<'a> = (Verb, &'a Element);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Delete,
    Add,
}

impl Tables {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, port, sequence: 0 })
    }

    /// The port that the kernel names in the events of this socket's changes.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// How many transactions there have been, by whomever.
    pub(super) fn generation(&mut self) -> io::Result<u32> {
        let mut generation = None;
        let take = |message: &NetlinkBuffer<&[u8]>| {
            generation = generation.or(generation_id(message.payload()));
        };
        self.ask(NFT_MSG_GETGEN, 0, 0, |_| {}, take)?;
        generation.ok_or_else(no_answer)
    }

    /// The tables' counters; none where there is no table.
    pub(super) fn counters(&mut self) -> io::Result<Counters> {
        let mut counters = self.counters_of(INET)?;
        counters.extend(self.counters_of(BRIDGE)?);
        Ok(counters)
    }

    fn counters_of(&mut self, family: u8) -> io::Result<Counters> {
        let of_the_table = |message: &mut Vec<u8>| {
            attribute(message, NFTA_OBJ_TABLE, |table| name(table, TABLE));
            attribute(message, NFTA_OBJ_TYPE, |kind| kind.extend(NFT_OBJECT_COUNTER.to_be_bytes()));
        };
        let (mut counters, mut done) = (Counters::new(), false);
        let take = |message: &NetlinkBuffer<&[u8]>| {
            done |= message.message_type() == NLMSG_DONE;
            counters.extend(counter(message.payload()));
        };
        self.ask(NFT_MSG_GETOBJ, NLM_F_DUMP, family, of_the_table, take)?;
        if done { Ok(counters) } else { Err(no_answer()) }
    }

    /// The elements of the sets of pods' ports; `None` where there is no table.
    pub(super) fn ports(&mut self) -> io::Result<Option<BTreeSet<Element>>> {
        let mut ports = BTreeSet::new();
        for set in PORT_SETS {
            match self.elements(BRIDGE, set, |key, _| ports.extend([Element::port(set, key.to_vec())])) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                answer => answer?,
            }
        }
        Ok(Some(ports))
    }

    /// How long the elements of the sets of unanswered initiations have been there, by address; none where there is no table.
    pub(super) fn unanswered(&mut self) -> io::Result<BTreeMap<IpAddr, Duration>> {
        let mut unanswered = BTreeMap::new();
        for set in UNANSWERED_SETS {
            match self.elements(INET, set, |key, element| unanswered.extend(unanswered_since(key, element))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                answer => answer?,
            }
        }
        Ok(unanswered)
    }

    /// Hands over each element of a set: its key and its attributes.
    fn elements(&mut self, family: u8, set: &str, mut take: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let of_the_set = |message: &mut Vec<u8>| nfnetlink::set(message, set);
        self.ask(GET_ELEMENTS, NLM_F_DUMP, family, of_the_set, |message| {
            each_element(message.payload(), &mut take)
        })
    }

    /// Removes elements and adds others, and gives the number of transactions. What is to be removed must be there, what
    /// is added may be.
    ///
    /// # Errors
    /// What the kernel answers. Nothing of up to 1,200 elements has then changed; of more, some may have.
    pub(super) fn change(&mut self, remove: &BTreeSet<Element>, add: &BTreeSet<Element>) -> io::Result<u32> {
        let remove = remove.iter().map(|e| (Verb::Delete, e));
        let all: Vec<Change<'_>> = remove.chain(add.iter().map(|e| (Verb::Add, e))).collect();
        let mut transactions = 0;
        for part in all.chunks(TRANSACTION) {
            self.transaction(part)?;
            transactions += 1;
        }
        Ok(transactions)
    }

    fn transaction(&mut self, changes: &[Change<'_>]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        self.message(&mut datagram, BATCH_BEGIN, 0, (0, NFTABLES), |_| {});
        // elements are sorted: one set, then the other
        for run in changes.chunk_by(|a, b| a.0 == b.0 && a.1.set == b.1.set) {
            let Some((verb, Element { family, set, .. })) = run.first() else { continue };
            let (kind, flags) = match verb {
                Verb::Add => (NEW_ELEMENTS, NLM_F_CREATE | NLM_F_ACK),
                Verb::Delete => (NFT_MSG_DELSETELEM, NLM_F_ACK),
            };
            self.message(&mut datagram, kind, flags, (*family, 0), |message| {
                nfnetlink::set(message, set);
                nfnetlink::elements(message, run.iter().map(|(_, element)| &element.key));
            });
        }
        let last = self.sequence;
        self.message(&mut datagram, BATCH_END, 0, (0, NFTABLES), |_| {});
        self.socket.send(&datagram, 0)?;
        let mut done = false;
        self.answers(first, |message| done |= message.sequence_number() == last)?;
        if done { Ok(()) } else { Err(no_answer()) }
    }

    /// Sends one request and hands over what the kernel answers.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Vec<u8>),
        take: impl FnMut(&NetlinkBuffer<&[u8]>),
    ) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        self.message(&mut datagram, kind, flags, (family, 0), body);
        self.socket.send(&datagram, 0)?;
        self.answers(first, take)
    }

    /// Appends a message with the next number.
    fn message(
        &mut self,
        datagram: &mut Vec<u8>,
        kind: u16,
        flags: u16,
        about: (u8, u16),
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        self.sequence = self.sequence.wrapping_add(1);
        nfnetlink::message(datagram, kind, flags, self.sequence, about, body);
    }

    /// Reads what the kernel has answered to the requests from `first` on; the first refusal is the error.
    fn answers(&self, first: u32, mut take: impl FnMut(&NetlinkBuffer<&[u8]>)) -> io::Result<()> {
        let mut refusal = None;
        let mut datagram = Vec::with_capacity(ANSWER);
        loop {
            datagram.clear();
            match self.socket.recv(&mut datagram, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                answer => answer?,
            };
            for message in split(&datagram) {
                if message.sequence_number().wrapping_sub(first) > self.sequence.wrapping_sub(first) {
                    continue; // an answer to an earlier request, whose reading was broken off
                }
                let code = message.payload().first_chunk().filter(|_| message.message_type() == NLMSG_ERROR);
                match code.map(|code| i32::from_ne_bytes(*code)) {
                    Some(code) if code < 0 => refusal = refusal.or(Some(code.saturating_neg())),
                    _ => take(&message),
                }
            }
        }
        refusal.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the kernel gave no answer")
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFT_MSG_DELSETELEM: u16 = NFTABLES << 8 | 14;
const NFT_MSG_GETGEN: u16 = NFTABLES << 8 | 16;
const NFT_MSG_GETOBJ: u16 = NFTABLES << 8 | 19;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_TYPE: u16 = 3;
