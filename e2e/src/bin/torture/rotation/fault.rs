//! What may happen while a key changes, and costs no packet.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use wg_overlay_e2e::lab::{Lab, Node, eventually_every};
use wg_overlay_e2e::look::rotation::ROTATION;

use crate::crowd::Crowd;
use crate::run::Run;

/// What an agent logs right before it writes a phase of its rotation down, and acts upon it.
const TURNS: [&str; 2] = ["the first one gets the next key", "all pairs are back on the first devices"];
/// How long the next turn is waited for.
const TURN: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(2);

/// One fault, mostly of a node that rotates; tells what it was, and how far that node's rotation was by then.
pub fn any(run: &mut Run, lab: &Lab, rotating: &[&Node], crowd: &mut Crowd) -> Result<String> {
    let node = if run.random.u8(..3) > 0 { run.choose(rotating) } else { run.node(lab) };
    let phase = lab.api().annotation(node.name(), ROTATION)?.unwrap_or_else(|| "not rotating".to_owned());
    let what = match run.random.u8(..9) {
        0 | 1 => {
            restart(run, node, 500)?;
            "killed"
        }
        2 => {
            await_turn(node);
            run.pause(60);
            restart(run, node, 500)?;
            "killed as it turns"
        }
        3 => {
            lab.nodes().iter().try_for_each(Node::kill_agent)?;
            run.pause(500);
            lab.nodes().iter().try_for_each(|node| node.start_agent(&[]))?;
            "killed with all others"
        }
        4 => {
            node.stop_agent()?;
            run.pause(4000);
            node.start_agent(&[])?;
            "stopped"
        }
        5 => {
            let pid =
                node.agent_pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no agent")?;
            kill_process(pid, Signal::STOP)?;
            run.pause(4000);
            kill_process(pid, Signal::CONT)?;
            "frozen"
        }
        6 => {
            let delay = run.random.u64(200..2000);
            lab.api().set_faults(&json!({ "delayMillis": delay, "cutWatches": run.random.bool() }))?;
            run.pause(4000);
            lab.api().clear_faults()?;
            "meets a slow API server"
        }
        7 => {
            crowd.change(run, lab, 8)?;
            restart(run, node, 60)?;
            "killed as others join and leave"
        }
        _ => {
            let now = run.random.u32(..).to_string();
            lab.api().annotate(node.name(), &json!({ "example.com/seen": now }))?;
            lab.api().patch_status(node.name(), &json!({ "status": { "volumesInUse": [now] } }))?;
            "changed otherwise"
        }
    };
    Ok(format!("{what} ({phase})"))
}

fn restart(run: &mut Run, node: &Node, below: u64) -> Result<()> {
    node.kill_agent()?;
    run.pause(below);
    node.start_agent(&[])
}

/// Waits until a node's agent turns to the next phase of its rotation, if that comes soon.
fn await_turn(node: &Node) {
    let turns = || TURNS.iter().map(|turn| node.agent_log().matches(turn).count()).sum::<usize>();
    let before = turns();
    let _unless_it_waits = eventually_every(LOOK, TURN, "a turn", || {
        ensure!(turns() > before, "none yet");
        Ok(())
    });
}
