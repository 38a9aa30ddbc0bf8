//! Half of the nodes come and go, and change all that a node can change, for the whole time; the other half must not notice:
//! their pairs lose nothing, and their peers are not touched. In the end every node's peers are the Nodes of the API.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, Node, Pace};
use wg_overlay_e2e::look::peers::wanted;
use wg_overlay_e2e::look::wg_dump;

use super::run::Run;
use super::traffic::Traffic;

mod member;

use member::Members;

const RESYNC: Duration = Duration::from_secs(10);
/// One packet a second and pair; beside so many agents an answer may be late without being lost.
const PACE: Pace = Pace { interval: Duration::from_secs(1), patience: Duration::from_secs(3) };
/// Milliseconds between two changes, at most.
const PAUSE: u64 = 1500;

/// The nodes of a lab share one kernel, and so its neighbour tables, in which each has all others. Where one is full, packets
/// are lost that a node of its own would not lose.
pub fn ensure_room(nodes: u8) -> Result<()> {
    let needed = u32::from(nodes) * (u32::from(nodes) + 4);
    for family in ["ipv4", "ipv6"] {
        let setting = format!("net.{family}.neigh.default.gc_thresh3");
        // Within a network namespace of its own there is no such file, and nothing to be known.
        let Ok(limit) = std::fs::read_to_string(format!("/proc/sys/{}", setting.replace('.', "/"))) else {
            continue;
        };
        let limit: u32 = limit.trim().parse()?;
        ensure!(
            limit >= needed,
            "{nodes} nodes in one kernel need {needed} neighbours, and {setting} is {limit}: fewer nodes, or `sysctl -w \
             {setting}={needed}` for the time of the run"
        );
    }
    Ok(())
}

pub fn run(run: &mut Run) -> Result<()> {
    run.in_lab(run.nodes, RESYNC, |run, lab| {
        let mut order: Vec<usize> = (0..lab.nodes().len()).collect();
        run.random.shuffle(&mut order);
        let (steady, movers) = order.split_at(order.len() / 2);
        let steady: Vec<&Node> = steady.iter().filter_map(|at| lab.nodes().get(*at)).collect();
        let pods = steady.iter().map(|node| node.add_pod("p")).collect::<Result<Vec<_>>>()?;
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), PACE)?;
        let mut watch = Watch::begin(lab, &steady)?;
        let mut members = Members::new(lab);
        let end = run.until(1.0);
        let mut moves = 0;
        while Instant::now() < end {
            let mover = run.choose(movers);
            members.step(run, lab, mover)?;
            moves += 1;
            watch.look()?;
            run.pause(PAUSE);
        }
        let differing = members.settle(lab)?;
        let peers = u64::try_from(members.up() * (members.up() - 1))?;
        let story = format!(
            "{moves} changes of {} of {} nodes, {} rotations of a key among them",
            movers.len(),
            lab.nodes().len(),
            members.rotations
        );
        for (item, found) in [
            ("stale peers and routes in the end", differing.stale),
            ("missing or wrong peers and routes in the end", [differing.missing, differing.wrong].concat()),
        ] {
            let note = format!("{story}\n{}", found.join("\n"));
            run.note(
                item,
                (peers, u64::try_from(found.len())?),
                "peers",
                note,
                moves > 0 && found.is_empty(),
            );
        }
        let (steps, touched) = watch.end()?;
        let counts = (steps, u64::try_from(touched.len())?);
        let item = "steps on nodes that stayed, and those that touch each other's peers";
        run.note(item, counts, "steps", touched.join("\n"), steps > 0 && touched.is_empty());
        traffic.end(run, "packets between pods of nodes that stayed", |_| true)
    })
}

/// The peers that the nodes that stay have of each other: made once, and told of in no plan since.
struct Watch<'a> {
    nodes: Vec<Watched<'a>>,
    /// By which a plan names them.
    names: Vec<String>,
    keys: Vec<String>,
    touched: Vec<String>,
}

struct Watched<'a> {
    node: &'a Node,
    log: usize,
    /// What has passed each peer: it begins anew with a peer that is made anew.
    bytes: BTreeMap<String, u64>,
}

impl<'a> Watch<'a> {
    fn begin(lab: &Lab, steady: &[&'a Node]) -> Result<Self> {
        let wanted = wanted(lab)?;
        let (mut names, mut keys) = (Vec::new(), Vec::new());
        for (name, of) in wanted.iter().filter(|(name, _)| steady.iter().any(|node| node.name() == *name)) {
            keys.push(of.key().to_owned());
            let (first, last) =
                (of.key().get(..4).unwrap_or_default(), of.key().get(40..).unwrap_or_default());
            names.extend([format!("peer {name} ("), format!("peer {first}…{last}")]);
            names.extend(of.allowed_ips().iter().map(|net| format!("route {net}")));
        }
        let watched = |node: &&'a Node| Watched { node, log: node.agent_log().len(), bytes: BTreeMap::new() };
        let mut watch =
            Self { nodes: steady.iter().map(watched).collect(), names, keys, touched: Vec::new() };
        watch.look()?;
        ensure!(watch.nodes.iter().all(|node| node.bytes.len() + 1 == watch.keys.len()), "a peer is missing");
        Ok(watch)
    }

    fn look(&mut self) -> Result<()> {
        for Watched { node, bytes, .. } in &mut self.nodes {
            let own = wg_dump(node)?;
            for key in &self.keys {
                let before = bytes.get(key).copied();
                let now = own.get(key).map(|peer| peer.bytes);
                if before.is_some_and(|before| now.is_none_or(|now| now < before)) {
                    self.touched
                        .push(format!("{}: peer {key} had {before:?} bytes, has {now:?}", node.name()));
                }
                now.map(|now| bytes.insert(key.clone(), now));
            }
        }
        Ok(())
    }

    /// How many steps there were, and what was touched. Of a plan of more than 64 steps an agent tells the number alone:
    /// there only the bytes speak.
    fn end(mut self) -> Result<(u64, Vec<String>)> {
        self.look()?;
        let mut steps = 0;
        for Watched { node, log, .. } in &self.nodes {
            let text = node.agent_log();
            for line in text.get(*log..).unwrap_or_default().lines() {
                let told: Value = serde_json::from_str(line).unwrap_or_default();
                for step in told["steps"].as_str().into_iter().flat_map(|steps| steps.split("; ")) {
                    steps += 1;
                    if self.names.iter().any(|name| step.contains(name)) {
                        self.touched.push(format!("{}: {}: {step}", node.name(), told["timestamp"]));
                    }
                }
            }
        }
        Ok((steps, self.touched))
    }
}
