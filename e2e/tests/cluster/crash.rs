//! A node that dies and comes back elsewhere, and a Node that is deleted: the others don't notice, and its own pairs pass
//! again soon after it is Ready.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wg_overlay_e2e::cluster::{Cluster, Probers};
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
    probers.ensure_lossless(&others, &format!("{node} was deleted"))?;
    // A kubelet registers its Node when it starts.
    cluster.harness(&["restart", "kubelet", &node])?;
    passes_after_ready(&cluster, &mut probers, &node)?;
    probers.ensure_lossless(&others, &format!("{node} was deleted and came back"))
}

/// Waits until the node is Ready and has its prober, and its pairs must have answers in time.
fn passes_after_ready(cluster: &Cluster, probers: &mut Probers, node: &str) -> Result<()> {
    let nodes = || cluster.nodes();
    // A Node that was just deleted or is unreachable may still be called Ready for what it said before.
    cluster.eventually(180, &format!("{node} is Ready and has its prober"), || {
        let object = cluster.get(&["node", node])?;
        let ready = condition(&object, "Ready");
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })?;
    let ready = Instant::now();
    cluster.eventually(180, &format!("a prober runs on {node}"), || probers.find())?;
    let found = Instant::now();
    probers.await_answers(&nodes()?)?;
    let (all, last) = (ready.elapsed(), found.elapsed());
    println!(
        "  {node}: all pairs pass {} ms after Ready, {} ms after its pod",
        all.as_millis(),
        last.as_millis()
    );
    ensure!(all < AFTER_READY, "{node}: its pairs passed {all:?} after Ready, {last:?} after its pod ran");
    Ok(())
}
