//! The plugin's environment, stdin and boot mark: seven texts, parted by NUL.

#![no_main]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use libfuzzer_sys::fuzz_target;
use wg_overlay_cni::fuzzing::{alias, boot_mark, call};

const NAMES: [&str; 5] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(NAMES.len() + 2, |byte| *byte == 0);
    let variables: Vec<&[u8]> = parts.by_ref().take(NAMES.len()).collect();
    let variable = |name| {
        let at = NAMES.iter().position(|known| *known == name)?;
        variables.get(at).map(|value| OsStr::from_bytes(value).to_owned())
    };
    let stdin = parts.next().unwrap_or_default();
    let ranges = boot_mark(parts.next().unwrap_or_default());
    call(variable, stdin, &ranges);
    if let Ok(text) = std::str::from_utf8(stdin) {
        alias(text);
    }
});
