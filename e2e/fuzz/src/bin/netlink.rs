//! What the kernel says, as the agent and the plugin read it: a datagram.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    wg_overlay_host::fuzzing::rtnetlink(datagram);
    wg_overlay_host::fuzzing::nfnetlink(datagram);
    wg_overlay_cni::fuzzing::netlink(datagram);
});
