//! The API server fails in each way it can, while Nodes change and agents die: nothing is lost, and what changed arrives
//! when it is back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, Node, Pace};
use wg_overlay_e2e::look::converged::pods;

use super::crowd::Crowd;
use super::run::Run;
use super::traffic::Traffic;

const NODES: u8 = 3;
const RESYNC: Duration = Duration::from_secs(5);
/// More requests than any agent makes.
const ALL: u32 = 1_000_000;

/// What is the matter with the server.
enum Fault {
    /// As `POST /faults` takes it.
    Demand(Value),
    /// Every watch ends within a line, again and again.
    Half,
    /// Packets to it from these nodes meet this verdict.
    Gone(Vec<usize>, &'static str),
}

pub fn run(run: &mut Run) -> Result<()> {
    run.in_lab(NODES, RESYNC, |run, lab| {
        let pods = pods(lab)?;
        let pace = Pace { interval: Duration::from_millis(20), ..Pace::default() };
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), pace)?;
        let mut crowd = Crowd::default();
        let end = run.until(1.0);
        let (mut tried, mut failed) = (0, None);
        while Instant::now() < end && failed.is_none() {
            let fault = any(run);
            let what = fault.to_string();
            suffer(run, lab, &mut crowd, &fault).with_context(|| what.clone())?;
            failed = run.settle(lab).err().map(|error| format!("after {what}: {error:#}"));
            tried += 1;
        }
        let lost = u64::from(failed.is_some());
        let item = "faults, each node's peers right afterwards";
        run.note(item, (tried, lost), "faults", failed.unwrap_or_default(), tried > 0 && lost == 0);
        traffic.end(run, "packets between all pods", |_| true)
    })
}

fn any(run: &mut Run) -> Fault {
    let status = run.choose(&[429, 410, 500, 503, 401, 403]);
    let delay = run.random.u64(200..8000);
    match run.random.u8(..11) {
        0 => Fault::Gone((0..usize::from(NODES)).collect(), run.choose(&["reject with tcp reset", "drop"])),
        1 => Fault::Gone(vec![run.random.usize(..usize::from(NODES))], run.choose(&["reject", "drop"])),
        2 => Fault::Demand(json!({ "delayMillis": delay, "cutWatches": true })),
        3 | 4 => {
            let fail = json!({ "count": ALL, "status": status, "path": "/api/v1/nodes" });
            Fault::Demand(json!({ "fail": fail, "cutWatches": true }))
        }
        5 => Fault::Half,
        6 => Fault::Demand(json!({ "silent": true })),
        7 => {
            let (how, streaming) =
                run.choose(&[("emptyLists", false), ("emptyLists", true), ("cutLists", false)]);
            Fault::Demand(
                json!({ (how): ALL, "streamingLists": streaming, "compact": true, "cutWatches": true }),
            )
        }
        8 => Fault::Demand(json!({ "lag": true, "compact": true, "cutWatches": true })),
        _ => {
            Fault::Demand(json!({ "streamingLists": run.random.bool(), "compact": true, "cutWatches": true }))
        }
    }
}

/// The fault for some seconds, in which Nodes change and now and then an agent is killed.
fn suffer(run: &mut Run, lab: &Lab, crowd: &mut Crowd, fault: &Fault) -> Result<()> {
    fault.begin(lab)?;
    let end = Instant::now() + Duration::from_millis(run.random.u64(300..5000));
    if run.random.u8(..4) == 0 {
        let node = run.node(lab);
        node.kill_agent()?;
        run.pause(200);
        node.start_agent(&[])?;
    }
    while Instant::now() < end {
        crowd.change(run, lab, 3)?;
        if matches!(fault, Fault::Half) {
            lab.api().set_faults(&json!({ "cutWatches": true }))?;
        }
        run.pause(400);
    }
    fault.end(lab)
}

impl Fault {
    fn begin(&self, lab: &Lab) -> Result<()> {
        match self {
            Self::Demand(demand) => lab.api().set_faults(demand).map(drop),
            Self::Half => Ok(()),
            Self::Gone(nodes, verdict) => {
                let rule = format!(
                    "add table inet gone; add chain inet gone out {{ type filter hook output priority -300; }};
                    add rule inet gone out tcp dport 6443 {verdict}"
                );
                of(lab, nodes).try_for_each(|node| node.exec("nft", [&rule]).map(drop))
            }
        }
    }

    fn end(&self, lab: &Lab) -> Result<()> {
        match self {
            Self::Demand(_) => lab.api().clear_faults(),
            Self::Half => Ok(()),
            Self::Gone(nodes, _) => {
                of(lab, nodes).try_for_each(|node| node.exec("nft", ["delete table inet gone"]).map(drop))
            }
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Demand(demand) => write!(f, "{demand}"),
            Self::Half => f.write_str("watches that end within a line"),
            Self::Gone(nodes, verdict) => write!(f, "{verdict} to the API server on {} nodes", nodes.len()),
        }
    }
}

fn of<'a>(lab: &'a Lab, places: &'a [usize]) -> impl Iterator<Item = &'a Node> {
    places.iter().filter_map(|at| lab.nodes().get(*at))
}
