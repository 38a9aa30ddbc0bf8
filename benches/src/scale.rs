//! One agent among 5,000 Nodes: what it takes to join them, to follow one change, to hear a heartbeat, to compare
//! everything, and to do nothing.

mod agent;
mod change;
mod join;
mod rest;

use anyhow::Result;
use wg_overlay_e2e::lab::Lab;

use crate::report::Findings;
use crate::{Options, nodes};

pub use agent::Agent;

/// As many nodes as Kubernetes supports.
pub const NODES: u16 = 5000;

/// Measures the rows of `Group::Scale`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    // Node 2 has a device and no agent: the floor is measured there.
    let lab: Lab = nodes::lab(2)?;
    // No resync falls into a measurement.
    let agent = Agent::start(&lab, "1h")?;
    join::measure(&lab, &agent, options, findings)?;
    let peak = agent.memory("VmHWM")?;
    change::measure(&lab, &agent, options, findings)?;
    drop(agent);
    rest::measure(&lab, peak, options, findings)
}
