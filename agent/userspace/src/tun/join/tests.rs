//! What is joined and cut again is what it was, in each flow's order.

use proptest::prelude::*;

use super::*;
use crate::tun::{
    Cutter,
    headers::{ACK, FIN, PROTOCOL_TCP, PROTOCOL_UDP},
};

/// A packet of one of few flows, whose payloads are what comes next in it.
#[derive(Clone, Debug)]
struct Sketch {
    flow: u8,
    is_v6: bool,
    is_tcp: bool,
    length: usize,
    flags: u8,
    /// Whether some of the flow is missing before it.
    gap: bool,
    window: u16,
    no_checksum: bool,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let length = prop::sample::select(vec![0_usize, 1, 100, 1000, 1000, 1000, 1000, 1360]);
    let flags = prop::sample::select(vec![ACK, ACK, ACK, ACK, ACK, ACK | PSH, ACK | FIN, ACK | 0x40]);
    let rare = || prop::bool::weighted(0.05);
    let kind = (0..3_u8, any::<bool>(), any::<bool>());
    (kind, length, flags, rare(), rare(), rare()).prop_map(
        |((flow, is_v6, is_tcp), length, flags, gap, narrow, no_checksum)| Sketch {
            flow,
            is_v6,
            is_tcp,
            length,
            flags,
            gap,
            window: if narrow { 100 } else { 512 },
            no_checksum,
        },
    )
}

/// Runs of one kind, so that trains come up.
fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let run = (sketch(), 1..70_usize, sketch());
    prop::collection::vec(run, 1..5).prop_map(|runs| {
        runs.into_iter()
            .flat_map(|(sketch, count, last)| std::iter::repeat_n(sketch, count).chain([last]))
            .collect()
    })
}

fn build(sketch: &Sketch, sequences: &mut [u32; 12]) -> Vec<u8> {
    let slot = usize::from(sketch.flow) * 4 + usize::from(sketch.is_v6) * 2 + usize::from(sketch.is_tcp);
    let sequence = &mut sequences[slot];
    *sequence = sequence.wrapping_add(if sketch.gap { 7 } else { 0 });
    let mut body = vec![0, sketch.flow, 0, 80];
    let protocol = if sketch.is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
    if sketch.is_tcp {
        body.extend(sequence.to_be_bytes());
        body.extend([0, 0, 0, 9, 0x80, sketch.flags]);
        body.extend(sketch.window.to_be_bytes());
        body.extend([0; 4]);
        body.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    } else {
        body.extend(u16::try_from(UDP_HEADER + sketch.length).unwrap().to_be_bytes());
        body.extend([0, 0]);
    }
    body.extend((0..sketch.length).map(|n| (n as u32).wrapping_add(*sequence).to_le_bytes()[0]));
    *sequence = sequence.wrapping_add(u32::try_from(sketch.length).unwrap());
    let mut packet = if sketch.is_v6 {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0xfd; 32]);
        packet
    } else {
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(20 + body.len()).unwrap().to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 9, 1, 1, 10, 9, 2, 1]);
        let sum = checksum::finish(checksum::add(0, &packet));
        put(&mut packet, 10, sum).unwrap();
        packet
    };
    let pseudo = checksum::pseudo_header(
        addresses(&packet, sketch.is_v6).unwrap(),
        protocol,
        u16::try_from(body.len()).unwrap(),
    );
    let sum = checksum::add(pseudo, &body);
    if sketch.is_tcp {
        put(&mut body, TCP_CHECKSUM, checksum::finish(sum)).unwrap();
    } else if !sketch.no_checksum {
        put(&mut body, UDP_CHECKSUM, checksum::finish_udp(sum)).unwrap();
    }
    packet.extend(body);
    packet
}

const UDP_HEADER: usize = 8;

/// What the kernel would be given.
fn writes(joiner: &Joiner, packets: &[Packet]) -> Vec<Vec<u8>> {
    let write = |train: &Train| {
        let first = &packets[train.first];
        if train.count == 1 {
            return [&[0; VIRTIO], first.as_ref()].concat();
        }
        let segment = train.segment.as_ref().unwrap();
        let mut room = [0; VIRTIO + IPV6 + 60];
        let mut bytes = train.headers(segment, first, &mut room).unwrap().to_vec();
        let mut index = Some(train.first);
        while let Some(at) = index {
            bytes.extend(&packets[at][segment.payload..]);
            index = joiner.next[at];
        }
        bytes
    };
    joiner.trains.iter().map(write).collect()
}

/// Without IPv4's number, which the cutting counts up, and its checksum.
fn normal(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] == 0x45 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// What tells flows apart.
fn flow(packet: &[u8]) -> Vec<u8> {
    if packet[0] == 0x45 {
        [&packet[9..10], &packet[20..24]].concat()
    } else {
        [&packet[6..7], &packet[40..44]].concat()
    }
}

proptest! {
    #[test]
    fn what_is_joined_can_be_cut_again(sketches in sketches(), joins_datagrams: bool) {
        let mut sequences = [0; 12];
        let bytes: Vec<_> = sketches.iter().map(|sketch| build(sketch, &mut sequences)).collect();
        let packets: Vec<_> = bytes.iter().map(|bytes| Packet::copy_from(bytes.as_slice())).collect();
        let mut joiner = Joiner::default();
        joiner.plan(&packets, joins_datagrams);

        let mut cutter = Cutter::default();
        let mut cut = Vec::new();
        for write in writes(&joiner, &packets) {
            prop_assert!(write.len() <= VIRTIO + usize::from(u16::MAX));
            // No padding: an MTU of zero.
            prop_assert!(cutter.cut(&write, 0, &mut cut).is_some());
        }
        let mut expected: Vec<_> = bytes.into_iter().map(normal).collect();
        let mut seen: Vec<_> = cut.iter().map(|packet| normal(packet.to_vec())).collect();
        // Stable: the order within a flow stays.
        expected.sort_by_key(|packet| (packet[0], flow(packet)));
        seen.sort_by_key(|packet| (packet[0], flow(packet)));
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn noise_is_neither_joined_nor_does_it_harm(
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20),
        first in prop::sample::select(vec![0x45_u8, 0x46, 0x60, 0]),
    ) {
        let packets: Vec<_> = noise
            .into_iter()
            .map(|mut bytes| {
                if let Some(byte) = bytes.first_mut() {
                    *byte = first;
                }
                Packet::copy_from(bytes.as_slice())
            })
            .collect();
        let mut joiner = Joiner::default();
        joiner.plan(&packets, true);
        let count: usize = joiner.trains.iter().map(|train| train.count).sum();
        prop_assert_eq!(count, packets.len());
        let _ = writes(&joiner, &packets);
        let mut cutter = Cutter::default();
        for packet in &packets {
            let _ = cutter.cut(packet, 1420, &mut Vec::new());
        }
    }
}

#[test]
fn a_bulk_transfer_goes_in_one_write() {
    let sketch = Sketch {
        flow: 1,
        is_v6: false,
        is_tcp: true,
        length: 1000,
        flags: ACK,
        gap: false,
        window: 512,
        no_checksum: false,
    };
    for (is_tcp, is_v6) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut sequences = [0; 12];
        let sketch = Sketch { is_tcp, is_v6, ..sketch.clone() };
        let packets: Vec<_> =
            (0..60).map(|_| Packet::copy_from(build(&sketch, &mut sequences).as_slice())).collect();
        let mut joiner = Joiner::default();
        joiner.plan(&packets, true);
        assert_eq!(joiner.trains.len(), 1);
    }
}
