//! An agent that is killed on its way up, at one step after the other, while one of the two guards and the tunnel are
//! gone: no pod packet leaves unencrypted, and the next agent puts everything back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use wg_overlay_e2e::lab::{Lab, Node, Pod, eventually, helper};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, status, with_agents};
use crate::guards::{counted, while_pods_send};
use crate::kernel::{await_kernel, kernel};
use crate::witness::{seen, watch};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("an_agent_killed_at_any_step_of_its_start_leaks_nothing", &["strace", "wg"], any_step),
        Case::new("what_is_forged_reaches_no_pod_while_agents_start", &["strace"], inbound),
    ]
}

/// What the kernel is asked, and each wait for another thread's work (the first as GNU's libc makes it).
const CALLS: [(&str, usize); 2] = [("sendto", 1), ("?epoll_wait,epoll_pwait", 2)];

fn any_step() -> Result<()> {
    while_pods_send(|lab, prober| {
        let node = lab.node(1)?;
        let healthy = kernel(node);
        node.stop_agent()?;
        for (call, stride) in CALLS {
            let mut kills = 0;
            for count in (1..).step_by(stride) {
                take_apart(node, kills % 2 == 0)?;
                node.start_agent_killed_at(call, count)?;
                eventually(PATIENCE, "it is killed, or converges", || {
                    ensure!(!node.agent_runs() || status(node)?["state"] == "Converged", "it works");
                    Ok(())
                })?;
                let was_killed = !node.agent_runs();
                node.kill_agent()?;
                node.start_agent(&[])?;
                await_peers(node, 1)?;
                await_kernel(node, &healthy, &format!("an agent killed at {call} {count}"))?;
                node.stop_agent()?;
                if !was_killed {
                    break;
                }
                kills += 1;
            }
            println!("  killed at {kills} places of {call}");
            ensure!(kills >= 5, "killed {kills} times: was the agent traced at all?");
        }
        prober.await_flow(PATIENCE)
    })
}

/// The underlay sends to a pod with the sources of another node's pods, without end, while agents start and are killed.
fn inbound() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let pod = node.add_pod("p")?;
        watch(&pod)?;
        let forged = ["10.244.2.7", "fd00:244:0:2::7"];
        forge(lab, node, forged, &pod)?;
        let is_dropped = |when: &str| {
            let before = counted(node, "plaintext_in")?;
            eventually(PATIENCE, &format!("forged packets are dropped {when}"), || {
                ensure!(counted(node, "plaintext_in")? > before, "none is counted");
                Ok(())
            })
        };
        is_dropped("while an agent runs")?;
        node.stop_agent()?;
        let mut kills = 0;
        for count in 1.. {
            node.start_agent_killed_at("sendto", count)?;
            eventually(PATIENCE, "it is killed, or converges", || {
                ensure!(!node.agent_runs() || status(node)?["state"] == "Converged", "it works");
                Ok(())
            })?;
            let was_killed = !node.agent_runs();
            node.kill_agent()?;
            is_dropped("after the agent")?;
            if !was_killed {
                break;
            }
            kills += 1;
        }
        println!("  killed at {kills} places");
        ensure!(kills >= 5, "killed {kills} times: was the agent traced at all?");
        let arrived = || -> Result<BTreeSet<_>> { Ok(&seen(&pod, false)? | &seen(&pod, true)?) };
        ensure!(arrived()?.is_empty(), "forged packets arrived: {:?}", arrived()?);
        // The control: without the rules they would have.
        node.exec("nft", ["delete table inet wg-overlay"])?;
        eventually(PATIENCE, "without the rules they arrive", || {
            let sources: Vec<_> = arrived()?.into_iter().map(|(source, _)| source).collect();
            ensure!(forged.iter().all(|from| sources.iter().any(|source| source == from)), "{sources:?}");
            Ok(())
        })
    })
}

/// Has the outside send UDP to a pod from addresses that it takes for its own, until the lab ends.
fn forge(lab: &Lab, node: &Node, sources: [&str; 2], pod: &Pod) -> Result<()> {
    let prober = helper("prober")?;
    let mut sends = String::new();
    for (((pods, via), target), source) in
        node.pod_cidrs().iter().zip(node.addresses()).zip(pod.ips()).zip(sources)
    {
        lab.control()
            .ip(&[format!("route replace {pods} via {via}"), format!("addr add {source} dev eth0 nodad")])?;
        let to = SocketAddr::new(*target, 9);
        writeln!(sends, "{} once --from {source} --to {to}", prober.display())?;
    }
    let mut command = lab.control().command("bash");
    command.args(["-c", &format!("while :; do {sends} done")]);
    lab.control().spawn(&mut command, &lab.folder().join("logs/forger.log")).map(drop)
}

/// Without the tunnel, and with one of the guards alone.
fn take_apart(node: &Node, keep_rules: bool) -> Result<()> {
    node.exec("ip", ["link", "del", "wgo0"])?;
    if !keep_rules {
        return node.exec("nft", ["delete table inet wg-overlay"]).map(drop);
    }
    for family in ["-4", "-6"] {
        node.exec("ip", [family, "route", "flush", "proto", "87", "type", "unreachable"])?;
    }
    Ok(())
}
