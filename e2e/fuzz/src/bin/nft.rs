//! What `nft -j list` and `iptables-legacy -S` answer.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &str| {
    wg_overlay_host::fuzzing::nft(answer);
    wg_overlay_host::fuzzing::iptables(answer);
});
