//! What one node costs, as `bench` has measured it, and how well a line through two points tells the third.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The measured points that the model starts from.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Bytes of a watch's event with a Node, its framing included.
    pub event: f64,
    /// Processor time of the agent for another Node's heartbeat, in seconds.
    pub heartbeat: f64,
    /// Likewise for another Node's joining.
    pub join: f64,
    /// The agent's memory by the number of nodes, in MiB.
    pub memory: Line,
    /// From the agent's start to converged by the number of nodes, in seconds.
    pub start: Line,
    /// Processor time of one handshake at one end, in seconds.
    pub handshake: f64,
}

/// A line through two measured points.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    base: f64,
    each: f64,
}

impl Line {
    fn through((x, y): (f64, f64), (far_x, far_y): (f64, f64)) -> Self {
        let each = (far_y - y) / (far_x - x);
        Self { base: y - each * x, each }
    }

    /// Its value at a number of nodes.
    pub fn at(self, nodes: f64) -> f64 {
        self.base + self.each * nodes
    }
}

/// A measured point that the model was not made from, and what it says there.
pub struct Check {
    /// What was measured.
    pub what: &'static str,
    /// What was measured, in the report's unit.
    pub measured: f64,
    /// What the model says.
    pub model: f64,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    ours: Option<f64>,
    baseline: Option<f64>,
}

const HEARTBEATS_AN_HOUR: f64 = 3600.0 / super::model::HEARTBEAT;

/// Reads a report of `bench`.
///
/// # Errors
/// It can't be read, or a row was not measured.
pub fn read(path: &Path) -> Result<(Measured, Vec<Check>)> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {}: `make bench` writes it", path.display()))?;
    let rows: Vec<Row> = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    let row = |id: &str| rows.iter().find(|row| row.id == id);
    let ours = |id: &str| row(id).and_then(|row| row.ours).with_context(|| format!("{id} was not measured"));
    let watch =
        |id: &str| row(id).and_then(|row| row.baseline).with_context(|| format!("{id} was not measured"));
    let event = |hour: f64, nodes: f64| hour * f64::from(1 << 20) / HEARTBEATS_AN_HOUR / nodes;
    let measured = Measured {
        event: event(watch("api-5000")?, 4999.0),
        heartbeat: ours("heartbeat-cpu")? / 1e6,
        join: ours("new-cpu")? / 1e3,
        memory: Line::through((2.0, ours("memory-2")?), (5000.0, ours("memory-5000")?)),
        start: Line::through((2.0, ours("start-2")? / 1e3), (5000.0, ours("start-5000")? / 1e3)),
        handshake: ours("handshake")? / 2e6,
    };
    let checks = vec![
        Check {
            what: "API bytes for an agent, 1,000 nodes, MiB/hour",
            measured: ours("api-1000")?,
            model: measured.event * HEARTBEATS_AN_HOUR * 999.0 / f64::from(1 << 20),
        },
        Check {
            what: "agent's RSS, 100 nodes, MiB",
            measured: ours("memory-100")?,
            model: measured.memory.at(100.0),
        },
        Check {
            what: "start to converged, 100 nodes, ms",
            measured: ours("start-100")?,
            model: measured.start.at(100.0) * 1e3,
        },
    ];
    Ok((measured, checks))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_passes_through_both_points(x in 1.0..100.0, gap in 1.0..1e5, y in 0.0..1e3, far in 0.0..1e3) {
            let line = Line::through((x, y), (x + gap, far));
            prop_assert!((line.at(x) - y).abs() < 1e-6);
            prop_assert!((line.at(x + gap) - far).abs() < 1e-6);
        }
    }
}
