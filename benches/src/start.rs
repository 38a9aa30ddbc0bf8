//! From an agent's start on a bare node to its word that it is converged, and its memory then, by the size of the cluster.

use std::time::Instant;

use anyhow::{Context as _, Result};
use wg_overlay_e2e::lab::Lab;

use crate::report::Findings;
use crate::scale::Agent;
use crate::stats::median;
use crate::{Options, nodes};

/// Rows by the number of nodes, this one among them.
const SIZES: [([&str; 2], u16); 3] =
    [(["start-2", "memory-2"], 2), (["start-100", "memory-100"], 100), (["start-5000", "memory-5000"], 5000)];

/// Measures the rows of `Group::Start`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let lab = nodes::lab(1)?;
    for ([start_row, memory_row], size) in SIZES {
        nodes::create(lab.api(), size - 1)?;
        let starts = (0..options.rounds.min(7)).map(|_| start(&lab)).collect::<Result<Vec<_>>>()?;
        let (took, memory): (Vec<f64>, Vec<f64>) = starts.into_iter().unzip();
        findings.single(start_row, median(&took).context("no rounds")?);
        findings.single(memory_row, median(&memory).context("no rounds")?);
        nodes::delete(lab.api(), size - 1)?;
    }
    Ok(())
}

/// In milliseconds, and in MiB. The node is bare again afterwards.
fn start(lab: &Lab) -> Result<(f64, f64)> {
    let began = Instant::now();
    let agent = Agent::start(lab, "1h")?;
    let took = began.elapsed();
    agent.at_rest()?;
    let memory = agent.memory("VmRSS")?;
    drop(agent);
    lab.node(1)?.wg_overlay(&["cleanup", "--config", "/etc/wg-overlay/config.yaml"])?;
    Ok((took.as_secs_f64() * 1e3, memory))
}
