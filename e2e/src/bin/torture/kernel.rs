//! Somebody else changes a node's kernel: what is ours comes back, by events or at the next resync; what isn't stays; and
//! the pairs of other nodes lose nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::lab::{Node, Pace, PairReport, Pod, eventually, eventually_every};
use wg_overlay_e2e::look::breaks::{self, Break};
use wg_overlay_e2e::look::converged::{PATIENCE, pods, status};
use wg_overlay_e2e::look::kernel::{Kernel, await_kernel, kernel};

use super::run::Run;
use super::traffic::Traffic;

const NODES: u8 = 3;
/// So far away that nothing is repaired by it.
const NEVER: Duration = Duration::from_secs(3600);
/// What raises no event waits for it.
const SOON: Duration = Duration::from_secs(2);

pub fn run(run: &mut Run) -> Result<()> {
    let events: Vec<Break> =
        breaks::LINKS.iter().chain(&breaks::ROUTES).chain(&breaks::RULES).copied().collect();
    suffer(run, NEVER, 0.5, &events, "repaired by events")?;
    suffer(run, SOON, 0.35, &breaks::WIREGUARD, "repaired at the resync")?;
    flush(run)
}

/// All of nftables goes, ours with it: how long the unreachable routes alone hold, and what leaves meanwhile.
fn flush(run: &mut Run) -> Result<()> {
    run.in_lab(NODES, NEVER, |run, lab| {
        let pods = pods(lab)?;
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), Pace::default())?;
        let node = lab.node(1)?;
        let healthy = kernel(node);
        let end = run.until(0.15);
        let mut windows = Vec::new();
        while Instant::now() < end {
            let (_, commands) = breaks::RULESET;
            node.exec("bash", ["-euc", commands])?;
            let began = Instant::now();
            // One by one: nft looks for the first of two chains in the table of the second.
            for chain in ["inet wg-overlay plaintext_outbound", "bridge wg-overlay from_pod"] {
                eventually_every(Duration::from_millis(1), PATIENCE, &format!("{chain} is back"), || {
                    node.exec("nft", ["list chain", chain])
                })?;
            }
            windows.push(began.elapsed());
            await_kernel(node, &healthy, "all of nftables flushed")?;
            run.pause(500);
        }
        windows.sort();
        let ms = |at: usize| windows.get(at).map_or(0, Duration::as_millis);
        let (median, longest) = (ms(windows.len() / 2), ms(windows.len().saturating_sub(1)));
        let note = format!(
            "with the routes alone for {median} ms in the median, {longest} ms at most, looks included"
        );
        let flushes = u64::try_from(windows.len())?;
        run.note("all of nftables flushed", (flushes, 0), "flushes", note, flushes > 0);
        let of_n1 = |name: &str| name.starts_with("n1/");
        let others = |pair: &PairReport| !of_n1(&pair.from) && !of_n1(&pair.to);
        traffic.end(run, "packets between other nodes, all of nftables flushed", others)
    })
}

fn suffer(run: &mut Run, resync: Duration, share: f64, breaks: &[Break], item: &str) -> Result<()> {
    run.in_lab(NODES, resync, |run, lab| {
        let pods = pods(lab)?;
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), Pace::default())?;
        let node = lab.node(1)?;
        breaks::add_foreign(node)?;
        let patient = Patient { node, healthy: kernel(node), foreign: breaks::foreign(node)?, pods: &pods };
        let end = run.until(share);
        let (mut tried, mut failed) = (0, None);
        while Instant::now() < end && failed.is_none() {
            let place_taken = resync == NEVER && run.random.usize(..=breaks.len()) == 0;
            let outcome = if place_taken { patient.shares() } else { patient.survives(run.choose(breaks)) };
            failed = outcome.err().map(|error| format!("{error:#}"));
            tried += 1;
        }
        let lost = u64::from(failed.is_some());
        run.note(item, (tried, lost), "faults", failed.unwrap_or_default(), tried > 0 && lost == 0);
        let of_n1 = |name: &str| name.starts_with("n1/");
        let others = |pair: &PairReport| !of_n1(&pair.from) && !of_n1(&pair.to);
        traffic.end(run, &format!("packets between other nodes, {item}"), others)
    })
}

/// The node that is broken, what it held, and what isn't ours on it.
struct Patient<'a> {
    node: &'a Node,
    healthy: Kernel,
    foreign: String,
    pods: &'a [Pod],
}

impl Patient<'_> {
    fn survives(&self, (what, commands): Break) -> Result<()> {
        // The agent may be replacing its table at this very moment: nft then does not find what it was told to change.
        eventually(PATIENCE, &format!("break: {what}"), || self.node.exec("bash", ["-euc", commands]))?;
        self.recovers(what)
    }

    /// A foreign route in the place of ours is named, left alone, and followed by ours when it goes.
    fn shares(&self) -> Result<()> {
        let [take, give_back] = breaks::TAKEN;
        self.node.exec("sh", ["-c", take])?;
        eventually(PATIENCE, "the foreign route in the place of ours is named", || {
            let problems = status(self.node)?["problems"].to_string();
            ensure!(problems.contains("10.244.2.0/24") && problems.contains("somebody else's"), "{problems}");
            Ok(())
        })?;
        self.node.exec("sh", ["-c", give_back])?;
        self.recovers("a route whose place was taken")
    }

    fn recovers(&self, what: &str) -> Result<()> {
        await_kernel(self.node, &self.healthy, what)?;
        let foreign = breaks::foreign(self.node)?;
        ensure!(foreign == self.foreign, "{what}: foreign things were\n{}\nand are\n{foreign}", self.foreign);
        let (own, others) = self.pods.split_first().context("no pods")?;
        for ip in others.iter().flat_map(Pod::ips) {
            eventually(PATIENCE, &format!("{own} reaches {ip} after: {what}"), || own.ping(*ip))?;
        }
        Ok(())
    }
}
