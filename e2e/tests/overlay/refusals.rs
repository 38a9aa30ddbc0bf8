//! A Node that says something wrong is named with its reason, and the others go on; a hostile one takes nothing.

#[path = "refusals/bad_input.rs"]
mod bad_input;
#[path = "refusals/hostile.rs"]
mod hostile;

use anyhow::{Result, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::PATIENCE;
use crate::look::metric;

/// Those that the device has a part in.
pub fn cases() -> Vec<Case> {
    hostile::cases()
}

/// What is refused before it concerns a device.
pub fn bad_input_cases() -> Vec<Case> {
    bad_input::cases()
}

/// Waits until an Event of this node's agent tells that a Node is refused for this reason, and looks at the metric.
fn await_event(lab: &Lab, on: &Node, refused: &str, reason: &str) -> Result<()> {
    eventually(PATIENCE, &format!("an Event tells that {refused} is refused: {reason}"), || {
        let events = lab.api().events()?;
        let tells = |event: &Value| {
            event["reason"] == reason
                && event["regarding"]["name"] == on.name()
                && event["note"].to_string().contains(refused)
        };
        ensure!(events.iter().any(tells), "{} Events of others", events.len());
        Ok(())
    })?;
    let told = metric(on, &format!("wg_overlay_refusals{{reason=\"{reason}\"}}"))?;
    ensure!(told == 1.0, "{reason}: the metric is {told}");
    Ok(())
}
