//! To come.
use wg_overlay_e2e::suite::Case;
pub fn cases() -> Vec<Case> {
    Vec::new()
}
