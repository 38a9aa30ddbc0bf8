//! An agent that is killed on its way up, at one step after the other, while one of the two guards and the tunnel are
//! gone: no pod packet leaves unencrypted, and the next agent puts everything back.

use anyhow::{Result, ensure};
use wg_overlay_e2e::lab::{Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, status};
use crate::guards::while_pods_send;
use crate::kernel::{await_kernel, kernel};

pub fn cases() -> Vec<Case> {
    vec![Case::new("an_agent_killed_at_any_step_of_its_start_leaks_nothing", &["strace", "wg"], any_step)]
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
