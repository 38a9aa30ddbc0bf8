//! Requests to the kernel's routing netlink (rtnetlink(7)): dumps, and batches of changes.
//!
//! Owns sockets and sequence numbers, not what the messages say. It stands apart from the `rtnetlink` crate because a
//! plan holds thousands of routes: that crate sends one request at a time and does not tell an interrupted dump. The
//! kernel answers a request while it is being sent, so nothing here waits: a missing answer is an error at once.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// Messages in a datagram. If each is refused, the answers still fit into the default receive buffer of 212,992 bytes.
const BATCH: usize = 200;
/// The kernel fills a dump's datagrams up to 32 KiB, and beyond only for a single link with many virtual functions.
const BUFFER: usize = 256 * 1024;
/// An answer to a change is a datagram of its own: a header, a code, and words at times.
pub(crate) const ANSWER: usize = 4096;
/// How often a dump that others' changes interrupt is begun again.
const DUMP_ATTEMPTS: u32 = 20;

/// One change, with the flags that say how (`NLM_F_CREATE`, `NLM_F_EXCL`, `NLM_F_REPLACE`).
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

impl Request {
    pub(crate) fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags }
    }
}

/// A socket for changes. It is kept, because its port tells our own changes from others' in the events.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, port, sequence: 0 })
    }

    /// The port that the kernel names in the events of this socket's changes.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Carries out the requests in their order, and goes on after one that fails. Gives the failed ones by position.
    pub(crate) fn execute(&mut self, requests: &[Request]) -> Vec<(usize, io::Error)> {
        let mut failed = Vec::new();
        for (number, batch) in requests.chunks(BATCH).enumerate() {
            let first = number * BATCH;
            match self.execute_batch(batch) {
                Ok(errors) => failed.extend(errors.into_iter().map(|(at, error)| (first + at, error))),
                Err(error) => {
                    let each = (first..first + batch.len()).map(|at| (at, copy(&error)));
                    failed.extend(each);
                }
            }
        }
        failed
    }

    /// Carries out one request.
    pub(crate) fn execute_one(&mut self, request: Request) -> io::Result<()> {
        self.execute(&[request]).into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    fn execute_batch(&mut self, batch: &[Request]) -> io::Result<Vec<(usize, io::Error)>> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(batch.len() * 128);
        for (at, request) in batch.iter().enumerate() {
            let ack = if at + 1 == batch.len() { NLM_F_ACK } else { 0 };
            self.append(&mut datagram, request, ack);
        }
        self.socket.send(&datagram, 0)?;
        let mut failed = Vec::new();
        let mut buffer = Vec::with_capacity(ANSWER);
        loop {
            self.receive(&mut buffer)?;
            for part in split(&buffer).filter(|part| part.message_type() == NLMSG_ERROR) {
                let at = part.sequence_number().wrapping_sub(first) as usize;
                let Some(code) = part.payload().first_chunk().map(|code| i32::from_ne_bytes(*code)) else {
                    continue;
                };
                if at >= batch.len() {
                    continue; // an answer to an earlier batch, whose reading was broken off
                }
                if code < 0 {
                    failed.push((at, io::Error::from_raw_os_error(code.saturating_neg())));
                }
                if at + 1 == batch.len() {
                    return Ok(failed);
                }
            }
        }
    }

    fn append(&mut self, datagram: &mut Vec<u8>, request: &Request, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request.message.clone());
        message.header.flags = NLM_F_REQUEST | request.flags | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = datagram.len();
        datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
        if let Some(room) = datagram.get_mut(start..) {
            message.serialize(room);
        }
    }

    /// What `pick` makes of the kernel's answers to a dump request, read again where they changed meanwhile.
    fn dump<T>(&mut self, request: &Request, pick: &Pick<'_, T>) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(answer) = self.dump_once(request, pick)? {
                return Ok(answer);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it changed during each of 20 readings"))
    }

    fn dump_once<T>(&mut self, request: &Request, pick: &Pick<'_, T>) -> io::Result<Option<Vec<T>>> {
        let mut datagram = Vec::new();
        self.append(&mut datagram, request, NLM_F_DUMP);
        self.socket.send(&datagram, 0)?;
        let mut answer = Vec::new();
        let mut interrupted = false;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            self.receive(&mut buffer)?;
            for part in split(&buffer) {
                if part.sequence_number() != self.sequence {
                    continue;
                }
                interrupted |= part.flags() & NLM_F_DUMP_INTR != 0;
                match (part.message_type(), part.payload().first_chunk()) {
                    (NLMSG_ERROR | NLMSG_DONE, Some(code)) if i32::from_ne_bytes(*code) < 0 => {
                        let code = i32::from_ne_bytes(*code).saturating_neg();
                        return Err(io::Error::from_raw_os_error(code));
                    }
                    (NLMSG_DONE, _) => return Ok((!interrupted).then_some(answer)),
                    _ => answer.extend(pick(part)),
                }
            }
        }
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        let length = self.socket.recv(buffer, MSG_TRUNC).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the kernel gave no answer"),
            _ => error,
        })?;
        if length > buffer.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {length} bytes")));
        }
        Ok(())
    }
}

/// What is kept of a dump's message, if anything: five thousand nodes are megabytes of messages.
type Pick<'a, T> = dyn Fn(Message<'_>) -> Option<T> + 'a;
pub(crate) type Message<'a> = NetlinkBuffer<&'a [u8]>;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Reads the kernel over a socket of its own, and gives what `pick` makes of each message.
pub(crate) fn dump<T>(
    message: RouteNetlinkMessage,
    pick: impl Fn(Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    Netlink::open()?.dump(&Request::new(message, 0), &pick)
}

/// recv(2): the length of the whole datagram, even if it was cut.
const MSG_TRUNC: i32 = 0x20;

/// What a message says. One that the parser does not know (another program's odd link) is left out: it must not hide the
/// others.
pub(crate) fn parsed(message: Message<'_>) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(message.into_inner()).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(message)) => Some(message),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "a netlink message that cannot be read is left out");
            None
        }
    }
}

/// The messages of a datagram.
pub(crate) fn split(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let message = NetlinkBuffer::new_checked(rest.get(..length)?).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn copy(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}
