//! Keys change, one or several at once, while agents die, freeze and wait for the API server: nothing is lost, each change
//! ends, and nobody has a key afterwards but the published ones.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::lab::{Lab, Node, Pace, product};
use wg_overlay_e2e::look::converged::pods;
use wg_overlay_e2e::look::key_of;
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
    begun: u64,
    changed: u64,
    refused: u64,
    looked_at: u64,
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
        let note =
            format!("{refused} refused beside another, {} s at most; {}", longest.as_secs(), met.join(", "));
        let holds = begun > 0 && begun == changed;
        run.note("rotations, and those that changed no key", (begun, begun - changed), "keys", note, holds);
        let (item, lost) = ("nodes with the published keys alone after each", u64::from(failed.is_some()));
        let holds = looked_at > 0 && lost == 0;
        run.note(item, (looked_at, lost), "nodes", failed.unwrap_or_default(), holds);
        traffic.end(run, "packets between all pods", |_| true)
    })
}

/// Some nodes begin at once, faults meet them, and each change ends.
fn round(run: &mut Run, lab: &Lab, tally: &mut Tally) -> Result<()> {
    let mut order: Vec<&Node> = lab.nodes().iter().collect();
    run.random.shuffle(&mut order);
    let count = run.choose(&[1, 1, 2, order.len()]);
    let mut expected = BTreeMap::new();
    for node in lab.nodes() {
        expected.insert(node.name(), key_of(lab, node.name())?);
    }
    let began = Instant::now();
    let (rotating, refused) = begin(order.iter().copied().take(count))?;
    for node in &rotating {
        expected.insert(node.name(), lab.api().annotation(node.name(), NEXT_KEY)?.context("no next key")?);
    }
    tally.begun += u64::try_from(rotating.len())?;
    tally.refused += refused;
    let mut crowd = Crowd::default();
    for _ in 0..run.random.u8(1..=6) {
        run.pause(1500);
        let fault = fault::any(run, lab, &rotating, &mut crowd)?;
        *tally.faults.entry(fault).or_default() += 1;
    }
    crowd.leave(lab)?;
    let ended = await_end(lab, PATIENCE);
    tally.longest = tally.longest.max(began.elapsed());
    for node in &rotating {
        tally.changed += u64::from(key_of(lab, node.name())? == expected[node.name()]);
    }
    ended?;
    run.settle(lab)?;
    for node in lab.nodes() {
        let key = key_of(lab, node.name())?;
        ensure!(
            key == expected[node.name()],
            "{}: the key is {key}, not {}",
            node.name(),
            expected[node.name()]
        );
        tally.looked_at += 1;
    }
    Ok(())
}

/// Those that begin, and how many may not, since another was earlier.
fn begin<'a>(nodes: impl Iterator<Item = &'a Node>) -> Result<(Vec<&'a Node>, u64)> {
    let mut asked = Vec::new();
    for node in nodes {
        let mut command = node.namespace().command(product("wg-overlay")?);
        asked.push((node, command.args(["rotate-key", "--no-wait"]).stderr(Stdio::piped()).spawn()?));
    }
    let (mut rotating, mut refused) = (Vec::new(), Vec::new());
    for (node, child) in asked {
        let output = child.wait_with_output()?;
        if output.status.success() {
            rotating.push(node);
        } else {
            refused.push(format!("{}: {}", node.name(), String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    ensure!(!rotating.is_empty(), "nobody may begin: {}", refused.join("; "));
    let early = |said: &&String| !said.contains("second device is in use");
    ensure!(refused.iter().find(early).is_none(), "{}", refused.join("; "));
    Ok((rotating, u64::try_from(refused.len())?))
}
