//! Nodes come, go and change: the others follow, and pairs that it does not concern lose no packet.

#[path = "nodes/change.rs"]
mod change;
#[path = "nodes/come_and_go.rs"]
mod come_and_go;
#[path = "nodes/condition.rs"]
mod condition;
#[path = "nodes/families.rs"]
mod families;
#[path = "nodes/quiet.rs"]
mod quiet;

use wg_overlay_e2e::suite::Case;

pub fn cases() -> Vec<Case> {
    [come_and_go::cases(), change::cases(), condition::cases(), families::cases(), quiet::cases()]
        .into_iter()
        .flatten()
        .collect()
}
