//! What a device answers and what it is asked, on its UAPI socket and on that of a device on standby.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    wg_overlay_host::fuzzing::uapi(data);
    if let Ok(text) = std::str::from_utf8(data) {
        wg_overlay_userspace::fuzzing::request(text);
    }
});
