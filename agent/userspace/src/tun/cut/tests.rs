//! It cuts as tun-rs does, which is wireguard-go's way.

use proptest::prelude::*;
use tun_rs::{VirtioNetHdr, gso_split};

use super::*;
use crate::tun::headers::{IPV4, VIRTIO};

#[derive(Clone, Debug)]
struct Large {
    is_v6: bool,
    is_tcp: bool,
    /// Identification, sequence, ports, options: what is copied or counted up.
    noise: Vec<u8>,
    options: usize,
    flags: u8,
    payload: Vec<u8>,
    size: u16,
}

fn large() -> impl Strategy<Value = Large> {
    let noise = prop::collection::vec(any::<u8>(), 60);
    let payload = prop::collection::vec(any::<u8>(), 1..6000);
    (any::<bool>(), any::<bool>(), noise, 0..11_usize, any::<u8>(), payload, 1..1500_u16).prop_map(
        |(is_v6, is_tcp, noise, options, flags, payload, size)| Large {
            is_v6,
            is_tcp,
            noise,
            options,
            flags,
            payload,
            size,
        },
    )
}

/// As the kernel hands it over, with virtio's header.
fn raw(large: &Large) -> Vec<u8> {
    let transport = if large.is_v6 { IPV6 } else { IPV4 };
    let header = if large.is_tcp { 20 + 4 * large.options } else { UDP };
    let mut ip = large.noise[..transport].to_vec();
    ip[0] = if large.is_v6 { 0x60 } else { 0x45 };
    let mut body = large.noise[..header].to_vec();
    if large.is_tcp {
        body[12] = u8::try_from(header / 4).unwrap() << 4;
        body[TCP_FLAGS] = large.flags;
    }
    let virtio = Virtio {
        needs_checksum: true,
        segments: match (large.is_tcp, large.is_v6) {
            (true, false) => Segments::Tcp4,
            (true, true) => Segments::Tcp6,
            (false, _) => Segments::Udp,
        },
        header_length: u16::try_from(transport + header).unwrap(),
        segment_size: large.size,
        checksum_start: u16::try_from(transport).unwrap(),
        checksum_offset: u16::try_from(if large.is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM }).unwrap(),
    };
    [virtio.encode().as_slice(), &ip, &body, &large.payload].concat()
}

proptest! {
    #[test]
    fn it_cuts_as_tun_rs_does(large in large(), mtu in 0..9000_usize) {
        let mut raw = raw(&large);
        let mut packets = Vec::new();
        prop_assert!(Cutter::default().cut(&raw, mtu, &mut packets).is_some());

        let count = large.payload.len().div_ceil(usize::from(large.size));
        let mut expected = vec![vec![0; 2000]; count];
        let mut sizes = vec![0; count];
        let header = VirtioNetHdr::decode(&raw[..VIRTIO]).unwrap();
        let cut = gso_split(&mut raw[VIRTIO..], header, &mut expected, &mut sizes, 0, large.is_v6);
        prop_assert_eq!(cut.unwrap(), packets.len());
        for ((packet, expected), size) in packets.iter().zip(&expected).zip(&sizes) {
            prop_assert_eq!(&packet[..*size], &expected[..*size]);
            // Padded as the white paper says.
            let whole = packet.len();
            prop_assert!(whole == *size || (whole <= mtu && whole - size < 16));
            prop_assert!(whole % 16 == 0 || whole == mtu.max(*size));
            prop_assert!(packet[*size..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn any_read_is_answered(raw in prop::collection::vec(any::<u8>(), 0..200), kind in 0..6_u8, start in 0..80_u16) {
        let mut raw = raw;
        if let Some(header) = raw.first_chunk_mut::<VIRTIO>() {
            [header[0], header[1]] = [kind & 1, kind];
            [header[6], header[7]] = start.to_ne_bytes();
        }
        let mut packets = Vec::new();
        let mut cutter = Cutter::default();
        if cutter.cut(&raw, 1420, &mut packets).is_none() {
            prop_assert!(packets.is_empty());
        }
        // Nothing of it stays behind.
        packets.clear();
        prop_assert!(cutter.cut(&[0; VIRTIO + 32], 1420, &mut packets).is_some());
        prop_assert_eq!(packets.iter().map(|packet| packet.len()).collect::<Vec<_>>(), [32]);
    }
}
