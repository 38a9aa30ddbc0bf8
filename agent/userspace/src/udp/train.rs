//! A train: packets of one size to one endpoint, sent in one call (UDP_SEGMENT).

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use rustix::io::Errno;

use super::Outgoing;

/// Most segments of one train: UDP_MAX_SEGMENTS (include/linux/udp.h) is 64 before Linux 6.10.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Most bytes of one train: the largest UDP payload over IPv4.
const MAX_BYTES: usize = 65_507;

/// Bytes of a handshake initiation (WireGuard paper, section 5.4.2); data never has so many. Each goes alone: the
/// node's rules count them by packets (agent/mesh/src/firewall/handshakes.rs), and a train passes them as one.
const INITIATION: usize = 148;

/// How many of the first packets make one train: same endpoint and size, the last may be shorter.
/// At least 1 where there are packets.
pub(super) fn length(packets: &[Outgoing]) -> usize {
    let Some((first, endpoint)) = packets.first() else {
        return 0;
    };
    let size = first.len();
    let mut bytes = 0;
    let mut count = 0;
    for (packet, destination) in packets.iter().take(MAX_SEGMENTS) {
        let joins = count == 0 || packet.len() != INITIATION;
        if !joins || destination != endpoint || packet.len() > size || bytes + packet.len() > MAX_BYTES {
            break;
        }
        bytes += packet.len();
        count += 1;
        if packet.len() < size || size == INITIATION {
            break;
        }
    }
    count.max(1)
}

/// Sends `train` in one call. All or nothing is sent.
pub(super) fn send(socket: BorrowedFd<'_>, train: &[Outgoing]) -> io::Result<()> {
    let Some((first, destination)) = train.first() else {
        return Ok(());
    };
    let size = u16::try_from(first.len()).map_err(|_| Errno::MSGSIZE)?;
    let slices: Vec<IoSlice> = train.iter().map(|(packet, _)| IoSlice::new(packet)).collect();
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let address = SockaddrStorage::from(*destination);
    sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::MSG_DONTWAIT, Some(&address))?;
    Ok(())
}

/// What an error of [`send`] says of trains, where it is not of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not this one: its packets are larger than the path, and must be cut.
    ThisTrain,
    /// None on this socket: no UDP_SEGMENT in the kernel, or no checksum offload on the link.
    AllTrains,
}

/// net/ipv4/udp.c, udp_send_skb: EMSGSIZE (EINVAL before Linux 6.13) where a segment exceeds the
/// path's MTU, EIO without checksum offload. A kernel without UDP_SEGMENT answers EINVAL too.
pub(super) fn refusal(error: &io::Error) -> Option<Refusal> {
    match Errno::from_io_error(error)? {
        Errno::MSGSIZE | Errno::INVAL => Some(Refusal::ThisTrain),
        Errno::IO | Errno::NOPROTOOPT | Errno::OPNOTSUPP => Some(Refusal::AllTrains),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use gotatun::packet::Packet;
    use proptest::prelude::*;

    use super::*;

    fn packets() -> impl Strategy<Value = Vec<(Packet, SocketAddr)>> {
        // Few sizes and endpoints, so that trains come up; runs of one kind, so that long ones do.
        let run = (prop::sample::select(vec![32_usize, 148, 1452, 8952, 65_504]), 0..3_u16, 1..200_usize);
        prop::collection::vec(run, 1..6).prop_map(|runs| {
            let packet = |size| Packet::copy_from(vec![0; size].as_slice());
            let endpoint = |port| SocketAddr::from(([192, 0, 2, 1], port));
            let run = |(size, port, count)| (0..count).map(move |_| (packet(size), endpoint(port)));
            runs.into_iter().flat_map(run).collect()
        })
    }

    proptest! {
        #[test]
        fn a_train_is_what_the_kernel_takes_and_no_shorter(packets in packets()) {
            let count = length(&packets);
            let (train, rest) = packets.split_at(count);
            let sizes: Vec<_> = train.iter().map(|(packet, _)| packet.len()).collect();
            let (first, last) = (sizes.first().copied(), sizes.last().copied());
            let bytes: usize = sizes.iter().sum();

            prop_assert!((1..=MAX_SEGMENTS).contains(&count));
            prop_assert!(bytes <= MAX_BYTES);
            prop_assert!(count == 1 || !sizes.contains(&INITIATION));
            prop_assert!(train.iter().all(|(_, to)| Some(to) == train.first().map(|(_, to)| to)));
            prop_assert!(sizes.iter().rev().skip(1).all(|size| Some(*size) == first));
            prop_assert!(last <= first);

            // The next packet would break one of the rules.
            if let (Some((next, to)), Some((_, endpoint))) = (rest.first(), train.first()) {
                prop_assert!(
                    count == MAX_SEGMENTS
                        || to != endpoint
                        || next.len() == INITIATION
                        || first == Some(INITIATION)
                        || Some(next.len()) > first
                        || last < first
                        || bytes + next.len() > MAX_BYTES
                );
            }
        }
    }
}
