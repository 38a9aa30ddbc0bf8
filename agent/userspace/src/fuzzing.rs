//! What e2e/fuzz calls of this crate: the readers of requests, and of packets from pods and from peers.

pub use crate::tun::join::fuzzing::join;
use crate::{standby, tun::Cutter, uapi::request::Request};

/// Reads a request on the UAPI socket, and a question on that of a device on standby.
pub fn request(text: &str) {
    drop(Request::parse(text));
    standby::parse(text);
}

/// Cuts what one read of the TUN link gave: virtio's header and a packet.
pub fn cut(raw: &[u8], mtu: usize) {
    let (mut cutter, mut packets) = (Cutter::default(), Vec::new());
    if cutter.cut(raw, mtu, &mut packets).is_none() {
        assert!(packets.is_empty(), "what is not understood gives no packet");
    }
    // Nothing of it stays behind.
    packets.clear();
    assert!(cutter.cut(&[0; 42], 1420, &mut packets).is_some());
    assert!(matches!(packets.as_slice(), [packet] if packet.len() == 32));
}
