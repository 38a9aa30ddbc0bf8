//! Processes of ours that die under traffic: the user-space device, and the agent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use wg_overlay_e2e::lab::{Node, PairReport, eventually};
use wg_overlay_e2e::suite::{Case, skip};

use crate::cluster::{PATIENCE, await_peers, status};
use crate::kernel::await_kernel;
use crate::repair::with_patient;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_user_space_device_that_is_killed_comes_back", &["wg"], device_killed),
        Case::new("an_agent_killed_twenty_times_loses_no_packet", &["wg"], agent_killed),
    ]
}

fn device_killed() -> Result<()> {
    with_patient("1h", |_, mut patient| {
        let node = patient.node;
        if status(node)?["device"]["implementation"] == "kernel" {
            return skip("the device is the kernel's, and no process");
        }
        for _ in 0..3 {
            let device = device_process(node)?;
            kill_process(device, Signal::KILL).context("kill the device's process")?;
            let killed = Instant::now();
            eventually(PATIENCE, "another process is the device", || {
                ensure!(device_process(node)? != device, "none but the killed one");
                Ok(())
            })?;
            await_kernel(node, &patient.healthy, "the device's process killed")?;
            println!("  repair: the device's process killed: within {} ms", killed.elapsed().as_millis());
            patient.prober.await_flow(PATIENCE)?;
        }
        Ok(())
    })
}

/// The process that is wgo0 on this node, and has not ended.
fn device_process(node: &Node) -> Result<Pid> {
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    let own = network(&node.namespace().pid().to_string())?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_device = String::from_utf8_lossy(&words).contains("\0device\0wgo0");
        if is_device && network(&name).is_ok_and(|found| found == own) {
            return name.parse().ok().and_then(Pid::from_raw).context("a process id");
        }
    }
    anyhow::bail!("no process of {} is wgo0", node.name())
}

fn agent_killed() -> Result<()> {
    with_patient("2s", |_, mut patient| {
        let node = patient.node;
        patient.prober.reset()?;
        for _ in 0..20 {
            // Between its first system call and some resyncs later.
            patient.prober.await_packets(random_below(80), PATIENCE)?;
            node.kill_agent()?;
            patient.prober.await_packets(random_below(20), PATIENCE)?;
            node.start_agent(&[])?;
        }
        await_peers(node, 1)?;
        await_kernel(node, &patient.healthy, "an agent killed twenty times")?;
        patient.prober.await_packets(100, PATIENCE)?;
        let losses = PairReport::losses(&patient.prober.stop()?);
        ensure!(losses.is_empty(), "{}", losses.join("\n"));
        Ok(())
    })
}

fn random_below(limit: u64) -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::from(nanos.subsec_nanos()) / 1000 % limit
}
