//! One Node of 5,000 changes: what is written for it, and what it costs the agent; and heartbeats, which change nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{ApiClient, Lab, eventually_every};

use super::{Agent, NODES};
use crate::Options;
use crate::floor::{hex, uapi};
use crate::nodes::{FIRST, MadeUp, conditions};
use crate::process::inside;
use crate::report::Findings;
use crate::stats::median;
use crate::strace::Trace;
use crate::watched::{cpu_of, cpu_of_children};

/// Changes of one kind for each round of the bench: children's processor time comes in ticks of 10 ms.
const CHANGES: u32 = 3;
/// Heartbeats of one round.
const HEARTBEATS: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a device of 5,000 peers.
const LOOK: Duration = Duration::from_millis(300);

/// One kind of change, and its rows.
struct Kind {
    rows: [&'static str; 3],
    /// Changes the node and tells the API.
    make: fn(&ApiClient, &mut MadeUp) -> Result<()>,
    /// The first node that is changed; each kind has its own.
    from: u16,
}

const KINDS: [Kind; 4] = [
    Kind { rows: ["address-peers", "address-routes", "address-cpu"], make: readdress, from: 100 },
    Kind { rows: ["new-peers", "new-routes", "new-cpu"], make: join, from: FIRST + NODES },
    Kind { rows: ["pod-cidr-peers", "pod-cidr-routes", "pod-cidr-cpu"], make: renumber, from: 300 },
    Kind { rows: ["key-peers", "key-routes", "key-cpu"], make: rekey, from: 400 },
];

/// Measures changes and heartbeats.
pub fn measure(lab: &Lab, agent: &Agent<'_>, options: &Options, findings: &mut Findings) -> Result<()> {
    let changes = u16::try_from(options.rounds * CHANGES).unwrap_or(u16::MAX).min(90);
    KINDS.iter().try_for_each(|kind| change(kind, changes, lab, agent, findings))?;
    heartbeats(lab, agent, options, findings)
}

fn change(kind: &Kind, changes: u16, lab: &Lab, agent: &Agent<'_>, findings: &mut Findings) -> Result<()> {
    let [peers_row, routes_row, cpu_row] = kind.rows;
    // The first one comes with what the agent has put off, since changes that don't end are acted upon twice a second.
    change_one(kind, kind.from, lab, agent)?;
    let children = cpu_of_children(agent.pid())?;
    let mut own = Vec::new();
    for number in (kind.from + 1..).take(changes.into()) {
        let before = cpu_of(agent.pid())?;
        change_one(kind, number, lab, agent)?;
        own.push(cpu_of(agent.pid())? - before);
    }
    let children = (cpu_of_children(agent.pid())? - children) / f64::from(changes);
    findings.single(cpu_row, (median(&own).context("no change")? + children) * 1e3);
    let (mut peers, mut routes) = (Vec::new(), Vec::new());
    for number in (kind.from + 1 + changes..).take(3) {
        let trace = Trace::start(agent.pid(), lab.folder())?;
        change_one(kind, number, lab, agent)?;
        let messages = trace.stop()?;
        peers.push(messages.peers as f64);
        routes.push(messages.routes as f64);
    }
    findings.single(peers_row, median(&peers).context("no trace")?);
    findings.single(routes_row, median(&routes).context("no trace")?);
    Ok(())
}

/// Changes a node and waits until its peer is as it says and the agent rests. Who looks at 5,000 peers takes the processor's
/// caches from the agent, so that is done once it rests.
fn change_one(kind: &Kind, number: u16, lab: &Lab, agent: &Agent<'_>) -> Result<()> {
    let mut node = MadeUp::new(number);
    let before = agent.at_rest()?;
    (kind.make)(lab.api(), &mut node)?;
    agent.works_and_rests(before)?;
    inside(agent.namespace(), || {
        let what = format!("{} is a peer as it says", node.name());
        eventually_every(LOOK, PATIENCE, &what, || is_programmed(&node))
    })?;
    agent.at_rest().map(drop)
}

fn is_programmed(node: &MadeUp) -> Result<()> {
    let settings = uapi("get=1\n\n")?;
    let peer = settings.split("public_key=").find(|peer| peer.starts_with(&hex(&node.key_bytes())));
    let peer = peer.with_context(|| format!("no peer {}", node.name()))?;
    ensure!(peer.contains(&format!("endpoint={}:51820\n", node.address())), "{}: {peer}", node.name());
    for net in node.pod_cidrs() {
        ensure!(peer.contains(&format!("allowed_ip={net}\n")), "{}: {peer}", node.name());
    }
    Ok(())
}

fn readdress(api: &ApiClient, node: &mut MadeUp) -> Result<()> {
    node.net = 29;
    api.patch_status(&node.name(), &json!({ "status": { "addresses": node.addresses() } })).map(drop)
}

fn join(api: &ApiClient, node: &mut MadeUp) -> Result<()> {
    api.create("/api/v1/nodes", &node.object()).map(drop)
}

fn renumber(api: &ApiClient, node: &mut MadeUp) -> Result<()> {
    node.pods += 6000;
    let [v4, v6] = node.pod_cidrs();
    let patch = json!({
        "metadata": { "annotations": node.annotations() },
        "spec": { "podCIDR": v4, "podCIDRs": [v4, v6] },
    });
    api.patch_node(&node.name(), &patch).map(drop)
}

fn rekey(api: &ApiClient, node: &mut MadeUp) -> Result<()> {
    node.key = 2;
    api.annotate(&node.name(), &node.annotations()).map(drop)
}

fn heartbeats(lab: &Lab, agent: &Agent<'_>, options: &Options, findings: &mut Findings) -> Result<()> {
    let mut number = 0;
    let mut beat = |beats: u32| -> Result<f64> {
        let before = agent.at_rest()?;
        for _ in 0..beats {
            number += 1;
            let node = MadeUp::new(FIRST + 1000 + (number % 1000) as u16);
            let status = json!({ "status": { "conditions": conditions(number) } });
            lab.api().patch_status(&node.name(), &status)?;
        }
        Ok((agent.works_and_rests(before)? - before) / f64::from(beats))
    };
    let took = (0..options.rounds).map(|_| beat(HEARTBEATS)).collect::<Result<Vec<_>>>()?;
    findings.single("heartbeat-cpu", median(&took).context("no heartbeat")? * 1e6);
    let trace = Trace::start(agent.pid(), lab.folder())?;
    beat(HEARTBEATS)?;
    findings.single("heartbeat-messages", trace.stop()?.all as f64);
    Ok(())
}
