//! A loss that is made on purpose: where a prober does not count it, its zero says nothing.

use anyhow::{Context as _, Result, ensure};

use super::converged::PATIENCE;
use crate::lab::{Lab, Node, PairReport, Pod, Prober, eventually};

/// Packets planted as lost, at least.
const PLANTED: u64 = 3;

/// Drops packets of one pair on their way, and waits until exactly those are counted as lost. Gives their number.
///
/// # Errors
/// Others are counted within `PATIENCE`, or nft refuses.
pub fn plant(lab: &Lab, prober: &mut Prober, from: &Pod, to: &Pod) -> Result<u64> {
    let node = lab.nodes().iter().find(|node| node.name() == from.node()).context("no such node")?;
    let pair = (from.ipv4()?, to.ipv4()?);
    let rule = format!(
        "add table inet planted; add counter inet planted dropped;
        add chain inet planted c {{ type filter hook forward priority -300; }};
        add rule inet planted c ip saddr {} ip daddr {} udp dport 7007 counter name dropped drop",
        pair.0, pair.1
    );
    // A dropped packet is one pod's question, or its answer to the other's.
    let mut between = |sum: fn(&PairReport) -> u64| -> Result<Vec<u64>> {
        let of_pair = |report: &&PairReport| {
            [pair.0, pair.1].contains(&report.target)
                && [from, to].iter().any(|pod| pod.to_string() == report.from)
        };
        Ok(prober.report()?.iter().filter(of_pair).map(sum).collect())
    };
    eventually(PATIENCE, "no packet from before the last reset is under way", || {
        let received = between(|report| report.received)?;
        ensure!(received.iter().all(|received| *received > 0), "{received:?}");
        Ok(())
    })?;
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
        let lost: u64 = between(|report| report.lost)?.iter().sum();
        ensure!(lost == dropped, "{dropped} were dropped, {lost} are counted as lost");
        Ok(dropped)
    })
}

fn dropped(node: &Node) -> Result<u64> {
    let text = node.exec("nft", ["list", "counter", "inet", "planted", "dropped"])?;
    let packets = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    packets.with_context(|| format!("nft printed {text}"))
}
