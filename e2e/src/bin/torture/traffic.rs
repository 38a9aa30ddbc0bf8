//! Packets between all pairs of pods, counted by number: with a planted loss that must be counted, and a pair of
//! namespaces with a plain veth between them that must lose none. And what of them the underlay carried outside the tunnel.

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::lab::{Capture, Lab, Node, Pace, PairReport, Pod, Prober, eventually};
use wg_overlay_e2e::look::converged::PATIENCE;

use super::run::Run;

/// Packets planted as lost, at least.
const PLANTED: u64 = 3;

/// Traffic that is counted from the end of `start` on.
pub struct Traffic {
    pods: Prober,
    plain: Prober,
    underlay: Capture,
}

impl Traffic {
    /// Waits until packets flow between all pairs, and shows that a loss is counted.
    pub fn start(run: &mut Run, lab: &Lab, pods: &[&Pod], pace: Pace) -> Result<Self> {
        let mut underlay = lab.capture()?;
        underlay.positive_control()?;
        let mut traffic =
            Self { pods: lab.paced_prober(pods, pace)?, plain: lab.plain_prober(pace)?, underlay };
        traffic.pods.await_flow(PATIENCE)?;
        traffic.plain.await_flow(PATIENCE)?;
        let &[from, to, ..] = pods else { anyhow::bail!("traffic needs two pods") };
        let dropped = plant(lab, &mut traffic.pods, from, to)?;
        run.count("a planted loss is counted", dropped, 0, "packets");
        traffic.pods.reset()?;
        traffic.plain.reset()?;
        Ok(traffic)
    }

    /// Stops it, and counts what was lost of the pairs that this is asked of.
    pub fn end(self, run: &mut Run, item: &str, of: impl Fn(&PairReport) -> bool) -> Result<()> {
        let (pods, plain, underlay) = (self.pods.stop()?, self.plain.stop()?, self.underlay.stop()?);
        let counted: Vec<PairReport> = pods.into_iter().filter(|pair| of(pair)).collect();
        let sum = |of: fn(&PairReport) -> u64| counted.iter().map(of).sum::<u64>();
        let (sent, lost) = (sum(|pair| pair.sent), sum(|pair| pair.lost));
        let mut lines = PairReport::losses(&plain);
        let void = !lines.is_empty();
        if void {
            lines.insert(0, "void: the plain veth lost packets, too".to_owned());
        }
        lines.extend(PairReport::losses(&counted));
        run.note(item, (sent, lost), "packets", lines.join("\n"), sent > 0 && lost == 0 && !void);
        let (carried, outside) = (underlay.class("wireguard").packets, underlay.plaintext());
        let verdict = underlay.assert_no_plaintext().err().map(|error| error.to_string());
        let holds = carried > 0 && verdict.is_none();
        let item = "packets of the tunnel on the underlay, and pods' packets beside it";
        run.note(item, (carried, outside), "packets", verdict.unwrap_or_default(), holds);
        Ok(())
    }
}

/// Drops packets of one pair on their way, and waits until exactly those are counted as lost. Gives their number.
fn plant(lab: &Lab, prober: &mut Prober, from: &Pod, to: &Pod) -> Result<u64> {
    let node = lab.nodes().iter().find(|node| node.name() == from.node()).context("no such node")?;
    let pair = (from.ipv4()?, to.ipv4()?);
    let rule = format!(
        "add table inet planted; add counter inet planted dropped;
        add chain inet planted c {{ type filter hook forward priority -300; }};
        add rule inet planted c ip saddr {} ip daddr {} udp dport 7007 counter name dropped drop",
        pair.0, pair.1
    );
    node.exec("nft", [&rule])?;
    eventually(PATIENCE, "the planted rule drops packets", || {
        let dropped = dropped(node)?;
        ensure!(dropped >= PLANTED, "{dropped}");
        Ok(())
    })?;
    node.exec("nft", ["flush chain inet planted c"])?;
    let dropped = dropped(node)?;
    node.exec("nft", ["delete table inet planted"])?;
    eventually(PATIENCE, "the planted loss is counted", || {
        // A dropped packet is one pod's question, or its answer to the other's.
        let of_pair = |report: &&PairReport| [pair.0, pair.1].contains(&report.target);
        let report = prober.report()?;
        let between = report
            .iter()
            .filter(of_pair)
            .filter(|report| [from, to].iter().any(|pod| pod.to_string() == report.from));
        let lost: u64 = between.map(|report| report.lost).sum();
        ensure!(lost == dropped, "{dropped} were dropped, {lost} are counted as lost");
        Ok(dropped)
    })
}

fn dropped(node: &Node) -> Result<u64> {
    let text = node.exec("nft", ["list", "counter", "inet", "planted", "dropped"])?;
    let packets = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    packets.with_context(|| format!("nft printed {text}"))
}
