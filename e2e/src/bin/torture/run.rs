//! One part's run: its choices, its time, its lab, and what it has counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::look::converged::{PATIENCE, start_agents};
use wg_overlay_e2e::look::peers::{difference, wanted};

use super::report::Item;

/// A part that runs.
pub struct Run {
    /// All choices.
    pub random: fastrand::Rng,
    /// How many nodes churn has.
    pub nodes: u8,
    name: String,
    seed: u64,
    time: Duration,
    out: PathBuf,
    items: Vec<Item>,
}

impl Run {
    pub fn new(name: String, seed: u64, time: Duration, nodes: u8, out: PathBuf) -> Self {
        // Each part has choices of its own, whichever parts run.
        let own = name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Self { random: fastrand::Rng::with_seed(own), nodes, name, seed, time, out, items: Vec::new() }
    }

    /// A lab of nodes whose agents are converged, resync so often, and die with it; its logs are kept if an item does not
    /// hold.
    pub fn in_lab(
        &mut self,
        nodes: u8,
        resync: Duration,
        body: impl FnOnce(&mut Self, &mut Lab) -> Result<()>,
    ) -> Result<()> {
        let resync = json!(format!("{}s", resync.as_secs()));
        let agent = Map::from_iter([("resyncInterval".to_owned(), resync)]);
        let mut lab = Lab::new(LabConfig { nodes, agent, ..LabConfig::default() })?;
        let before = self.items.len();
        let outcome = start_agents(&lab).and_then(|()| body(self, &mut lab));
        if outcome.is_err() || self.items.iter().skip(before).any(|item| !item.holds) {
            let logs = self.out.join("logs").join(&self.name);
            copy(&lab.folder().join("logs"), &logs).context("keep the lab's logs")?;
            println!("  its logs: {}", logs.display());
        }
        outcome
    }

    /// When so much of the part's time is over, counted from now.
    pub fn until(&self, share: f64) -> Instant {
        Instant::now() + self.time.mul_f64(share)
    }

    /// Puts an item into the report; it holds if something was tried and nothing was lost.
    pub fn count(&mut self, item: &str, tried: u64, lost: u64, unit: &'static str) {
        self.note(item, (tried, lost), unit, String::new(), tried > 0 && lost == 0);
    }

    /// Likewise with a verdict and a note.
    pub fn note(&mut self, item: &str, counts: (u64, u64), unit: &'static str, note: String, holds: bool) {
        let (tried, lost) = counts;
        let verdict = if holds { "holds" } else { "DOES NOT HOLD" };
        println!("  {item}: {tried} {unit} tried, {lost} lost: {verdict}");
        note.lines().for_each(|line| println!("    {line}"));
        let item = format!("{}: {item}", self.name);
        self.items.push(Item { item, tried, lost, unit, seed: self.seed, holds, note });
    }

    /// What was counted; a part that failed is an item that does not hold.
    pub fn end(mut self, outcome: Result<()>) -> Vec<Item> {
        if let Err(error) = outcome {
            self.note("ran to its end", (1, 1), "parts", format!("{error:#}"), false);
        }
        self.items
    }

    /// Lets a random time below so many milliseconds pass.
    pub fn pause(&mut self, below: u64) {
        std::thread::sleep(Duration::from_millis(self.random.u64(..below)));
    }

    /// Waits until each node's peers are the Nodes of the API, and its routes into the tunnel theirs.
    pub fn settle(&self, lab: &Lab) -> Result<()> {
        for node in lab.nodes() {
            eventually(PATIENCE, &format!("the peers of {} are the Nodes", node.name()), || {
                let found = difference(node, node.name(), &wanted(lab)?)?;
                ensure!(found.count() == 0, "{found}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.usize(..from.len())]
    }

    /// One of the lab's nodes.
    pub fn node<'a>(&mut self, lab: &'a Lab) -> &'a Node {
        &lab.nodes()[self.random.usize(..lab.nodes().len())]
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
