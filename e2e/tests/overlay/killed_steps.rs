//! A running agent that is killed while it follows a change of a Node: after its first request to the kernel, after its
//! second, and so on until the change takes no more of them. The next agent does the rest, and pairs that stay lose nothing.
//!
//! The resync is an hour away, so that it is the next agent's start that finds what is left to do.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::look::peers::{difference, wanted};
use wg_overlay_e2e::look::planted::plant;
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, with_config};
use crate::kernel::{Kernel, ensure_kernel, kernel};
use crate::look::{KEY, OVERLAY_IPS, create_node, ensure_lossless, made_up, made_up_key, plan, probing};

pub fn cases() -> Vec<Case> {
    vec![Case::new("an_agent_killed_after_any_step_of_a_plan_loses_nothing", &["strace", "wg"], any_step)]
}

/// The Node that changes: only the API knows it.
const MOVER: &str = "mover";

type Move = fn(&Lab) -> Result<()>;

/// What becomes of it, and back.
const MOVES: [(&str, Move, Move); 4] = [
    ("it leaves and joins", |lab| lab.api().delete_node(MOVER), |lab| create_node(lab, &made_up(MOVER, 70))),
    ("its address changes", |lab| address(lab, 71), |lab| address(lab, 70)),
    ("its PodCIDR changes", |lab| pod_cidr(lab, 72), |lab| pod_cidr(lab, 70)),
    ("its key changes", |lab| key(lab, 73), |lab| key(lab, 70)),
];

fn address(lab: &Lab, number: u8) -> Result<()> {
    let addresses = &made_up(MOVER, number)["status"]["addresses"];
    lab.api().patch_status(MOVER, &json!({ "status": { "addresses": addresses } })).map(drop)
}

fn pod_cidr(lab: &Lab, number: u8) -> Result<()> {
    let other = made_up(MOVER, number);
    let annotations = json!({ (OVERLAY_IPS): other["metadata"]["annotations"][OVERLAY_IPS] });
    let patch = json!({ "metadata": { "annotations": annotations }, "spec": other["spec"] });
    lab.api().patch_node(MOVER, &patch).map(drop)
}

fn key(lab: &Lab, number: u8) -> Result<()> {
    lab.api().annotate(MOVER, &json!({ (KEY): made_up_key(number) })).map(drop)
}

fn any_step() -> Result<()> {
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!("1h"))]);
    with_config(LabConfig { nodes: 3, agent, ..LabConfig::default() }, |lab| {
        create_node(lab, &made_up(MOVER, 70))?;
        let pods = pods(lab)?;
        let [one, two, ..] = pods.as_slice() else { anyhow::bail!("not two pods") };
        let mut prober = probing(lab, &pods.iter().collect::<Vec<_>>())?;
        plant(lab, &mut prober, one, two)?;
        prober.reset()?;
        for (what, there, back) in MOVES {
            let before = undisturbed(lab, |_| Ok(()))?;
            let after = undisturbed(lab, there)?;
            ensure!(before != after, "{what}: it changes nothing");
            ensure!(undisturbed(lab, back)? == before, "{what}, and back: the kernel isn't as before");
            let mut places = BTreeMap::<String, usize>::new();
            for step in 1.. {
                let killed = [(there, &after), (back, &before)]
                    .into_iter()
                    .map(|(go, expected)| killed_after(lab, step, go, expected))
                    .collect::<Result<Vec<_>>>()?;
                for place in killed.iter().flatten() {
                    *places.entry(place.clone()).or_default() += 1;
                }
                ensure_lossless(&mut prober, &format!("{what}: agents killed after step {step}"))?;
                if killed.iter().all(Option::is_none) {
                    break;
                }
            }
            println!("  {what}: killed after {places:?}");
            // No change takes less than two, there and back.
            ensure!(places.values().sum::<usize>() >= 4, "{what}: was the agent traced at all?");
        }
        Ok(())
    })
}

/// What n1's kernel holds after a move that its agent follows to the end.
fn undisturbed(lab: &Lab, go: Move) -> Result<Kernel> {
    let node = lab.node(1)?;
    go(lab)?;
    eventually(PATIENCE, "n1 follows", || {
        let left = plan(node)?;
        ensure!(left.contains("as it should be"), "{left}");
        ensure_wanted(lab, node)
    })?;
    Ok(kernel(node))
}

fn ensure_wanted(lab: &Lab, node: &Node) -> Result<()> {
    let difference = difference(node, node.name(), &wanted(lab)?)?;
    ensure!(difference.count() == 0, "{difference}");
    Ok(())
}

/// Moves the Node, kills n1's agent after so many requests, and starts another, which must bring the kernel to what is
/// expected. Gives what the last request was; none where the move takes fewer.
fn killed_after(lab: &Lab, step: usize, go: Move, expected: &Kernel) -> Result<Option<String>> {
    let node = lab.node(1)?;
    let is_done = || {
        ensure_kernel(node, expected)?;
        ensure_wanted(lab, node)
    };
    let steps = node.step_agent()?;
    go(lab)?;
    let mut last = None;
    for count in 1..=step {
        last = eventually(PATIENCE, &format!("request {count}, or the end"), || {
            // In this order: what made it done has been counted, or its thread does not wait yet.
            let done = is_done().is_ok() && steps.rests()?;
            let taken = steps.taken()?.into_iter().nth(count - 1);
            ensure!(taken.is_some() || done, "neither");
            Ok(taken)
        })?;
        if last.is_none() || count == step {
            break;
        }
        steps.go_on();
    }
    node.kill_agent()?;
    node.start_agent(&[])?;
    await_peers(node, wanted(lab)?.len() - 1)?;
    eventually(
        PATIENCE,
        &format!("the kernel is as it should be, the agent killed after request {step}"),
        is_done,
    )?;
    Ok(last)
}
