//! A Node that says something wrong is named with its reason, and the others go on; a hostile one takes nothing.

#[path = "refusals/bad_input.rs"]
mod bad_input;
#[path = "refusals/hostile.rs"]
mod hostile;

use wg_overlay_e2e::suite::Case;

/// Those that the device has a part in.
pub fn cases() -> Vec<Case> {
    hostile::cases()
}

/// What is refused before it concerns a device.
pub fn bad_input_cases() -> Vec<Case> {
    bad_input::cases()
}
