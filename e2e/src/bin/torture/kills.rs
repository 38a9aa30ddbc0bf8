//! Agents are killed at any moment: at rest, in the midst of plans, in their start. What they leave carries every packet,
//! and the next agent makes the kernel what it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use wg_overlay_e2e::lab::{Lab, Node, Pace, eventually};
use wg_overlay_e2e::look::breaks;
use wg_overlay_e2e::look::converged::{await_peers, pods};
use wg_overlay_e2e::look::kernel::{Kernel, ensure_kernel, kernel};

use super::crowd::Crowd;
use super::run::Run;
use super::traffic::Traffic;

const NODES: u8 = 3;
/// How often an agent compares everything, whatever was reported.
const RESYNC: Duration = Duration::from_secs(5);
/// Kills between two looks at the kernels.
const ROUND: usize = 12;
/// About what a plan of some Nodes takes.
const BUSY: Duration = Duration::from_millis(20);
/// More bytes than a line of the log has.
const TAIL: u64 = 65_536;

/// How many, by when.
type Kills = BTreeMap<&'static str, u64>;

pub fn run(run: &mut Run) -> Result<()> {
    run.in_lab(NODES, RESYNC, |run, lab| {
        let pods = pods(lab)?;
        let pace = Pace { interval: Duration::from_millis(20), ..Pace::default() };
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), pace)?;
        let healthy: Vec<Kernel> = lab.nodes().iter().map(kernel).collect();
        let end = run.until(1.0);
        let (mut kills, mut differing) = (Kills::new(), Vec::new());
        while Instant::now() < end && differing.is_empty() {
            let mut crowd = Crowd::default();
            for _ in 0..ROUND {
                kill(run, lab, &mut crowd, &mut kills)?;
            }
            crowd.leave(lab)?;
            differing = settle(lab, &healthy)?;
        }
        let met: Vec<String> = kills.iter().map(|(moment, count)| format!("{count} {moment}")).collect();
        let note = [vec![met.join(", ")], differing.clone()].concat().join("\n");
        let counts = (kills.values().sum(), u64::try_from(differing.len())?);
        let item = "agents killed with -9, and the kernels as before at the next resync";
        run.note(item, counts, "kills", note, counts.0 > 0 && counts.1 == 0);
        traffic.end(run, "packets between all pods", |_| true)
    })
}

/// Gives an agent something to do, or not, and kills it; sometimes the next one too, before it has begun.
fn kill(run: &mut Run, lab: &Lab, crowd: &mut Crowd, kills: &mut Kills) -> Result<()> {
    let node = run.node(lab);
    match run.random.u8(..6) {
        0 => {}
        1..=3 => crowd.change(run, lab, 20)?,
        4 => {
            // Nothing of it carries packets between pods. The agent may be replacing its table at this very moment.
            let harmless: Vec<_> =
                breaks::ROUTES.iter().chain(&breaks::RULES).filter(|b| harmless(b.0)).collect();
            let _unless_busy = node.exec("bash", ["-euc", run.choose(&harmless).1]);
        }
        _ => {
            if let Some(number) = crowd.any(run) {
                let _unless_not_there_yet =
                    node.exec("ip", ["route", "del", &format!("10.244.{number}.0/24")]);
            }
        }
    }
    run.pause(80);
    end(node, kills)?;
    run.pause(300);
    node.start_agent(&[])?;
    while run.random.u8(..3) == 0 {
        run.pause(150);
        end(node, kills)?;
        node.start_agent(&[])?;
    }
    Ok(())
}

/// Kills a node's agent, and counts when: it tells a plan's steps before it makes the first.
fn end(node: &Node, kills: &mut Kills) -> Result<()> {
    let now = SystemTime::now();
    node.kill_agent()?;
    let mut log = File::open(node.log("agent"))?;
    let metadata = log.metadata()?;
    let silent = now.duration_since(metadata.modified()?).unwrap_or_default();
    log.seek(SeekFrom::Start(metadata.len().saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    log.read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let last = tail.lines().last().unwrap_or_default();
    let moment = match (last.contains("\"applying"), last.contains("\"converged\"")) {
        (true, _) if silent < BUSY => "within 20 ms of a plan's first step",
        (true, _) | (_, true) => "later",
        _ => "in the start",
    };
    *kills.entry(moment).or_default() += 1;
    Ok(())
}

fn harmless(what: &str) -> bool {
    [
        "a rule added",
        "an unreachable route removed",
        "an IPv6 unreachable route removed",
        "a route of ours to nowhere",
    ]
    .contains(&what)
}

/// Waits until the agents have each other, and for the next resync: what differs then.
fn settle(lab: &Lab, healthy: &[Kernel]) -> Result<Vec<String>> {
    lab.nodes().iter().try_for_each(|node| await_peers(node, lab.nodes().len() - 1))?;
    let mut differing = Vec::new();
    for (node, expected) in lab.nodes().iter().zip(healthy) {
        // The resync is so far away at most, and takes its time.
        let same = eventually(2 * RESYNC, &format!("{}: the kernel is as before", node.name()), || {
            ensure_kernel(node, expected)
        });
        differing.extend(same.err().map(|error| format!("{error:#}")));
    }
    Ok(differing)
}
