//! What a device answers and what it is asked, on its UAPI socket and on that of a device on standby.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match std::str::from_utf8(data) {
        // The agent's buffer is large, and wiped each time: requests go without it.
        Ok(text) if ["set=", "get=", "start"].iter().any(|begin| text.starts_with(begin)) => {
            wg_overlay_userspace::fuzzing::request(text);
        }
        _ => wg_overlay_host::fuzzing::uapi(data),
    }
});
