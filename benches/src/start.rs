//! From an agent's start on a bare node to its word that it is converged, by the size of the cluster.

use std::time::Instant;

use anyhow::{Context as _, Result};
use wg_overlay_e2e::lab::Lab;

use crate::report::Findings;
use crate::scale::Agent;
use crate::stats::median;
use crate::{Options, nodes};

/// Rows by the number of nodes, this one among them.
const SIZES: [(&str, u16); 3] = [("start-2", 2), ("start-100", 100), ("start-5000", 5000)];

/// Measures the rows of `Group::Start`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let lab = nodes::lab(1)?;
    for (row, size) in SIZES {
        nodes::create(lab.api(), size - 1)?;
        let took = (0..options.rounds.min(7)).map(|_| start(&lab)).collect::<Result<Vec<f64>>>()?;
        findings.single(row, median(&took).context("no rounds")?);
        nodes::delete(lab.api(), size - 1)?;
    }
    Ok(())
}

/// In milliseconds. The node is bare again afterwards.
fn start(lab: &Lab) -> Result<f64> {
    let began = Instant::now();
    let agent = Agent::start(lab, "1h")?;
    let took = began.elapsed();
    drop(agent);
    lab.node(1)?.wg_overlay(&["cleanup", "--config", "/etc/wg-overlay/config.yaml"])?;
    Ok(took.as_secs_f64() * 1e3)
}
