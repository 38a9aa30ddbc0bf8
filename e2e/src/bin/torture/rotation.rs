//! Keys change, one or several at once, while agents die, freeze and wait for the API server: nothing is lost, each change
//! ends, and nobody has a key afterwards but the published ones.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::lab::{Lab, Node, Pace, product};
use wg_overlay_e2e::look::KEY;
use wg_overlay_e2e::look::converged::pods;
use wg_overlay_e2e::look::rotation::{NEXT_KEY, await_end};

use super::crowd::Crowd;
use super::run::Run;
use super::traffic::Traffic;

mod fault;

const NODES: u8 = 4;
const RESYNC: Duration = Duration::from_secs(10);
/// A change of a key takes this long at most once its faults are over. Well below the time after which it is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What became of it all.
#[derive(Default)]
struct Tally {
    begun: usize,
    changed: usize,
    refused: usize,
    looked_at: usize,
    longest: Duration,
    /// Faults by what they were and how far a rotation was.
    faults: BTreeMap<String, u64>,
}

pub fn run(run: &mut Run) -> Result<()> {
    run.in_lab(NODES, RESYNC, |run, lab| {
        let pods = pods(lab)?;
        let pace = Pace { interval: Duration::from_millis(30), ..Pace::default() };
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), pace)?;
        await_end(lab, PATIENCE)?;
        let end = run.until(1.0);
        let (mut tally, mut failed) = (Tally::default(), None);
        while Instant::now() < end && failed.is_none() {
            failed = round(run, lab, &mut tally).err().map(|error| format!("{error:#}"));
        }
        let Tally { begun, changed, refused, looked_at, longest, faults } = tally;
        let met: Vec<String> = faults.iter().map(|(fault, count)| format!("{count} {fault}")).collect();
        let note = format!("{refused} had to wait, {} s at most; {}", longest.as_secs(), met.join(", "));
        let counts = (u64::try_from(begun)?, u64::try_from(begun - changed)?);
        let holds = begun > 0 && begun == changed;
        run.note("rotations, and those that changed no key", counts, "keys", note, holds);
        let counts = (u64::try_from(looked_at)?, u64::from(failed.is_some()));
        let holds = looked_at > 0 && failed.is_none();
        let item = "nodes with the published keys alone after each";
        run.note(item, counts, "nodes", failed.unwrap_or_default(), holds);
        traffic.end(run, "packets between all pods", |_| true)
    })
}

/// Some nodes begin at once, faults meet them, others want to begin meanwhile, and each change ends.
fn round(run: &mut Run, lab: &Lab, tally: &mut Tally) -> Result<()> {
    let (keys, next_keys) = (annotations(lab, KEY)?, annotations(lab, NEXT_KEY)?);
    let mut order: Vec<&Node> = lab.nodes().iter().collect();
    run.random.shuffle(&mut order);
    order.truncate(run.choose(&[1, 1, 2, order.len()]));
    let began = Instant::now();
    let mut rotating = Vec::new();
    let refused = begin(&mut rotating, &order)?;
    ensure!(!rotating.is_empty(), "nobody may begin: {}", refused.join("; "));
    tally.refused += refused.len();
    let mut crowd = Crowd::default();
    for _ in 0..run.random.u8(1..=6) {
        run.pause(1500);
        let fault = fault::any(run, lab, &rotating, &mut crowd)?;
        *tally.faults.entry(fault).or_default() += 1;
        let later = run.node(lab);
        if run.random.bool() && rotating.iter().all(|node| node.name() != later.name()) {
            tally.refused += begin(&mut rotating, &[later])?.len();
        }
    }
    crowd.leave(lab)?;
    let ended = await_end(lab, PATIENCE);
    tally.longest = tally.longest.max(began.elapsed());
    let now = annotations(lab, KEY)?;
    let is_next = |node: &&&Node| now.get(node.name()) == next_keys.get(node.name());
    tally.begun += rotating.len();
    tally.changed += rotating.iter().filter(is_next).count();
    ended?;
    run.settle(lab)?;
    let rotates = |name: &str| rotating.iter().any(|node| node.name() == name);
    let other = now.iter().find(|(name, key)| !rotates(name) && keys.get(*name) != Some(key));
    ensure!(other.is_none(), "a key changed by itself: {other:?}, and was one of {keys:?}");
    tally.looked_at += now.len();
    Ok(())
}

/// Asks nodes to begin, all at once, and adds those that do. Gives what the others say: one has to wait until the rotation
/// of another has ended, or until it is ready.
fn begin<'a>(rotating: &mut Vec<&'a Node>, nodes: &[&'a Node]) -> Result<Vec<String>> {
    let mut asked = Vec::new();
    for node in nodes {
        let mut command = node.namespace().command(product("wg-overlay")?);
        asked.push((node, command.args(["rotate-key", "--no-wait"]).stderr(Stdio::piped()).spawn()?));
    }
    let mut refused = Vec::new();
    for (node, child) in asked {
        let output = child.wait_with_output()?;
        if output.status.success() {
            rotating.push(node);
        } else {
            refused.push(format!("{}: {}", node.name(), String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    Ok(refused)
}

/// An annotation of each of the lab's nodes.
fn annotations<'a>(lab: &'a Lab, key: &str) -> Result<BTreeMap<&'a str, String>> {
    let of = |node: &'a Node| {
        let value = lab.api().annotation(node.name(), key)?;
        Ok((node.name(), value.with_context(|| format!("Node {} has no {key}", node.name()))?))
    };
    lab.nodes().iter().map(of).collect()
}
