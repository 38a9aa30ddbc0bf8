//! What e2e/fuzz calls of this crate: the readers of what the kernel, a device and programs answer, each as it is called with
//! a socket or a program behind it.

use std::{
    io::{self, Read},
    time::SystemTime,
};

use netlink_packet_route::RouteNetlinkMessage;

pub use crate::nft::fuzzing::{iptables, nfnetlink, nft};
use crate::{
    events::links::KnownLinks,
    links,
    netlink::{parsed, split},
    routes,
    wireguard::uapi,
};

/// Reads a datagram of rtnetlink, as a dump and as events.
pub fn rtnetlink(datagram: &[u8]) {
    let mut known = KnownLinks::default();
    for message in split(datagram) {
        routes::found(message.payload());
        match parsed(message) {
            Some(RouteNetlinkMessage::NewLink(link)) => drop(links::found(&link)),
            Some(RouteNetlinkMessage::NewAddress(address)) => drop(links::address(&address)),
            _ => {}
        }
    }
    for own in [false, true] {
        for message in split(datagram) {
            known.heard(message, own);
        }
    }
    if let Some(link) = split(datagram).last().filter(|message| message.message_type() == RTM_NEWLINK) {
        assert!(!known.heard(link, false), "the same once more is no change");
    }
}

/// include/uapi/linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;

/// Reads a device's answer, whole and in pieces.
pub fn uapi(answer: &[u8]) {
    let read =
        |piece| uapi::parse(Pieces(answer, piece), SystemTime::UNIX_EPOCH).map_err(|error| error.kind());
    let (whole, pieces) = (read(usize::MAX), read(7));
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
}

/// Gives so many bytes at a time.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .take(self.1 as u64)
            .read(buffer)
            .inspect(|read| self.0 = self.0.get(*read..).unwrap_or_default())
    }
}
