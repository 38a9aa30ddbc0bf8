//! A Node that says something wrong is named with its reason, and the others go on; a hostile one takes nothing.

#[path = "refusals/bad_input.rs"]
mod bad_input;
#[path = "refusals/hostile.rs"]
mod hostile;

use wg_overlay_e2e::suite::Case;

pub fn cases() -> Vec<Case> {
    [bad_input::cases(), hostile::cases()].into_iter().flatten().collect()
}
