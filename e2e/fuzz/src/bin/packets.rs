//! Packets of pods (virtio's header and what is to be cut) and of peers: two bytes of length and a packet, again and again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wg_overlay_userspace::fuzzing::{cut, join};

fuzz_target!(|data: &[u8]| {
    let Some(([choice, mtu @ ..], data)) = data.split_first_chunk::<3>() else { return };
    if choice & 1 == 0 {
        return cut(data, usize::from(u16::from_le_bytes(*mtu)));
    }
    let (mut rest, mut packets) = (data, Vec::new());
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (packet, others) = after.split_at(length);
        packets.push(packet);
        rest = others;
    }
    join(&packets, choice & 2 == 0);
});
