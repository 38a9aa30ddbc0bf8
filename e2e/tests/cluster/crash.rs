//! A node that dies and comes back elsewhere, and a Node that is deleted: the others don't notice, and its own pairs pass
//! again soon after it is Ready.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wg_overlay_e2e::cluster::{Cluster, Probers};
use wg_overlay_e2e::lab::PairReport;
use wg_overlay_e2e::suite::Case;

use crate::common::{cluster, condition, victim, without};

/// How soon after its Node is Ready a node's pairs pass.
const AFTER_READY: Duration = Duration::from_secs(10);

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_node_that_crashes_comes_back_with_another_address", &[], crash),
        Case::new("a_deleted_node_disturbs_no_other_and_comes_back", &[], deletion),
    ]
}

fn crash() -> Result<()> {
    let cluster = cluster()?;
    let (node, mut probers) = (victim(&cluster)?, Probers::start(&cluster)?);
    let others = without(&cluster, &node)?;
    let address = |cluster: &Cluster| cluster.get(&["node", &node]).map(|n| n["status"]["addresses"].clone());
    let before = address(&cluster)?;
    cluster.harness(&["node-down", &node])?;
    cluster.eventually(180, &format!("{node} is seen to be gone"), || {
        let ready = condition(&cluster.get(&["node", &node])?, "Ready")["status"].clone();
        ensure!(ready != "True", "it is Ready");
        Ok(())
    })?;
    cluster.harness(&["node-up", &node, "--new-ip"])?;
    passes_after_ready(&cluster, &mut probers, &node)?;
    ensure!(address(&cluster)? != before, "{node} has the address that it had");
    probers.ensure_lossless(&others, &format!("{node} crashed and returned"))
}

fn deletion() -> Result<()> {
    let cluster = cluster()?;
    let (node, mut probers) = (victim(&cluster)?, Probers::start(&cluster)?);
    let others = without(&cluster, &node)?;
    cluster.kubectl(&["delete", "node", &node])?;
    let deleted = probers.ensure_lossless(&others, &format!("{node} was deleted"));
    // A Node that comes back sooner finds its pods, with addresses of its former PodCIDR.
    let forgotten = cluster.eventually(180, &format!("the pods of {node} are gone"), || {
        let pods = cluster.list(&["pods", "-A", "--field-selector", &format!("spec.nodeName={node}")])?;
        ensure!(pods.is_empty(), "{} pods", pods.len());
        Ok(())
    });
    // A kubelet registers its Node when it starts.
    cluster.harness(&["restart", "kubelet", &node])?;
    deleted?;
    forgotten?;
    passes_after_ready(&cluster, &mut probers, &node)?;
    probers.ensure_lossless(&others, &format!("{node} was deleted and came back"))
}

/// Waits until the node is Ready and has its prober, whose start is the kubelet's; then its pairs must have answers in time.
fn passes_after_ready(cluster: &Cluster, probers: &mut Probers, node: &str) -> Result<()> {
    let nodes = cluster.nodes()?;
    // A kubelet that was quicker than its Node tries CSINode again only after two minutes.
    cluster.eventually(400, &format!("{node} is Ready"), || {
        let ready = condition(&cluster.get(&["node", node])?, "Ready");
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })?;
    let ready = Instant::now();
    probers.await_ready(node)?;
    let began = Instant::now();
    let key = |pair: &PairReport| (pair.from.clone(), pair.target);
    // A prober that was there before has other answers behind it.
    let others = without(cluster, node)?;
    let before: BTreeMap<_, _> =
        probers.report_to_all(&others)?.iter().map(|p| (key(p), p.received)).collect();
    cluster.eventually(180, &format!("the pairs of {node} pass"), || {
        // Its pod may be shown with the address of its former life at first.
        probers.find()?;
        for pair in probers.report(&nodes)? {
            let more =
                pair.received - before.get(&key(&pair)).copied().unwrap_or_default().min(pair.received);
            ensure!(more > 0, "{} to {} ({}): no answer", pair.from, pair.to, pair.target);
        }
        Ok(())
    })?;
    let passed = began.elapsed();
    let whole = ready.elapsed().as_millis();
    println!("  {node}: all pairs pass {whole} ms after Ready, {} ms after its prober", passed.as_millis());
    ensure!(passed < AFTER_READY, "{node}: its pairs passed {passed:?} after Ready");
    Ok(())
}
