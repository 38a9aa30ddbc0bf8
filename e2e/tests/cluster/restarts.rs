//! What restarts, is killed or stays away on a node or beside it, while every node probes every other: no packet is lost.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use wg_overlay_e2e::cluster::{Cluster, Probers};
use wg_overlay_e2e::lab::run;
use wg_overlay_e2e::suite::Case;

use crate::common::{AGENT, OURS, agent, cluster, full, victim, workers};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_rollout_of_the_agents_loses_no_packet", &[], rollout),
        Case::new("an_agent_killed_for_its_memory_loses_no_packet", &["find"], out_of_memory),
        Case::new("a_restart_of_containerd_loses_no_packet", &[], containerd),
        Case::new("a_restart_of_the_kubelet_loses_no_packet", &[], kubelet),
        Case::new("an_api_server_that_is_down_loses_no_packet", &[], api_server_down),
    ]
}

/// Runs a body while all nodes probe each other, and counts what was lost meanwhile.
pub fn lossless(during: &str, body: impl FnOnce(&Cluster, &Probers) -> Result<()>) -> Result<()> {
    let cluster = cluster()?;
    let nodes = cluster.nodes()?;
    let probers = Probers::start(&cluster)?;
    body(&cluster, &probers)?;
    probers.ensure_lossless(&nodes, during)
}

fn rollout() -> Result<()> {
    lossless("a rollout of the agents", |cluster, _| {
        let before = agent(cluster, "n1")?;
        cluster.kubectl(&["-n", OURS, "rollout", "restart", &format!("daemonset/{AGENT}")])?;
        cluster.await_rollout(OURS, AGENT)?;
        ensure!(agent(cluster, "n1")?.pod != before.pod, "the agent of n1 was not replaced");
        Ok(())
    })
}

fn out_of_memory() -> Result<()> {
    lossless("an agent killed for its memory", |cluster, _| {
        let node = victim(cluster)?;
        let before = agent(cluster, &node)?;
        let group = memory_group(&before.container)?;
        kill_for_memory(&group)?;
        cluster.eventually(120, &format!("the agent of {node} is back"), || {
            let now = agent(cluster, &node)?;
            ensure!(now.ready && now.restarts > before.restarts, "{} restarts", now.restarts);
            let reason = &now.last_state["terminated"]["reason"];
            ensure!(reason == "OOMKilled", "it ended as {}", now.last_state);
            Ok(())
        })
    })
}

/// The memory control group of a container, of either version.
fn memory_group(container: &str) -> Result<PathBuf> {
    let root = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find(|root| Path::new(root).exists());
    let mut find = Command::new("find");
    let found =
        run(find.arg(root.context("no control groups")?).args(["-type", "d", "-name"]).arg(container))?;
    let found =
        found.lines().next().with_context(|| format!("container {container} has no control group"))?;
    Ok(found.into())
}

/// Fills a group's memory, whose limit is brought near to what it has, from a process of ours. The kernel kills the
/// others in the group first, because they are made the worst.
fn kill_for_memory(group: &Path) -> Result<()> {
    let limit = ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name));
    let used = ["memory.usage_in_bytes", "memory.current"].map(|name| group.join(name));
    let file = |files: [PathBuf; 2]| files.into_iter().find(|file| file.exists()).context("no memory limit");
    let used: u64 = std::fs::read_to_string(file(used)?)?.trim().parse()?;
    let script = "
        for pid in $(cat $0/cgroup.procs); do echo 1000 > /proc/$pid/oom_score_adj; done
        echo $2 > $1; echo $$ > $0/cgroup.procs; head -c $3 /dev/zero | tail -c $3";
    let limit = file(limit)?;
    let words =
        [group.to_owned(), limit, (used + (4 << 20)).to_string().into(), (64 << 20).to_string().into()];
    // It is killed too, when nothing else is left.
    let _killed = run(Command::new("bash").args(["-uc", script]).args(words));
    Ok(())
}

fn containerd() -> Result<()> {
    lossless("a restart of containerd on every worker", |cluster, _| {
        for node in workers(cluster)? {
            cluster.harness(&["restart", "containerd", &node])?;
            cluster.eventually(60, "containerd answers", || cluster.on(&node, &["ctr", "version"]))?;
        }
        Ok(())
    })
}

fn kubelet() -> Result<()> {
    lossless("a restart of the kubelet on every worker", |cluster, _| {
        for node in workers(cluster)? {
            cluster.harness(&["restart", "kubelet", &node])?;
            cluster.await_ready(&node)?;
        }
        Ok(())
    })
}

fn api_server_down() -> Result<()> {
    let seconds: u64 = if full() { 600 } else { 30 };
    lossless(&format!("an API server that is down for {seconds} s"), |cluster, probers| {
        let nodes = cluster.nodes()?;
        cluster.harness(&["stop", "apiserver"])?;
        let probed = (0..seconds).step_by(10).try_for_each(|_| probers.await_packets(&nodes, 1000));
        let refused = cluster.kubectl(&["get", "--raw", "/readyz"]);
        cluster.harness(&["start", "apiserver"])?;
        probed?;
        if refused.is_ok() {
            bail!("the API server was not down");
        }
        nodes.iter().try_for_each(|node| cluster.await_ready(node))
    })
}
