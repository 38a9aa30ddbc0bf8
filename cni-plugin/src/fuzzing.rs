//! What e2e/fuzz calls of this crate: the readers of what runtimes, the kernel and the state folder hold.

use wg_overlay_ipam::Range;

pub use crate::plugin::fuzzing::call;
use crate::{
    Network,
    names::{pod_link_alias, pod_link_owner},
    netlink::messages,
};

/// Reads a datagram of rtnetlink, and the marks of its links.
pub fn netlink(datagram: &[u8]) {
    messages(datagram).for_each(drop);
}

/// Reads a link's mark.
pub fn alias(alias: &str) {
    if let Some(holder) = pod_link_owner(alias) {
        assert_eq!(pod_link_alias(&holder), alias);
    }
}

/// Reads the boot mark. Gives the ranges that pods then get addresses of.
pub fn boot_mark(text: &[u8]) -> Vec<Range> {
    let network = Network::parse(text).ok();
    network.and_then(|network| network.ranges().ok()).unwrap_or_default()
}
