//! Join: 5,000 Nodes come into the store one after another, and the clock runs from the last one's on.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use wg_overlay_e2e::lab::{Lab, Node, eventually, eventually_every, product};
use wg_overlay_mesh::DEVICE;

use super::{Agent, NODES};
use crate::floor::{Netlink, peers_text, uapi};
use crate::nodes::{create, delete, made_up};
use crate::process::inside;
use crate::report::Findings;
use crate::{Options, each_round};

/// A round takes the store apart and puts it together again: the rounds that a median needs, and no more.
const ROUNDS: u32 = 7;
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures joins, and leaves all Nodes joined.
pub fn measure(lab: &Lab, agent: &Agent<'_>, options: &Options, findings: &mut Findings) -> Result<()> {
    let floor = lab.node(2)?;
    let link = start_device(floor)?;
    let last = made_up(NODES).last().map(|node| node.pod_cidrs()).context("no nodes")?;
    let prefixes: Vec<IpNet> = made_up(NODES).flat_map(|node| node.pod_cidrs()).collect();
    let peers = peers_text(made_up(NODES));
    let mut joined = false;
    let [ours, base] =
        each_round(options.rounds.min(ROUNDS), [true, false], |is_ours, took: &mut Vec<f64>| {
            if is_ours {
                if std::mem::replace(&mut joined, true) {
                    delete(lab.api(), NODES)?;
                    agent.at_rest()?;
                }
                took.push(join(lab, agent, &last)?);
            } else {
                floor.exec("ip", ["route", "flush", "proto", "87"])?;
                floor.exec("ip", ["-6", "route", "flush", "proto", "87"])?;
                took.push(pass(floor, &peers, &prefixes, link)?);
            }
            Ok(())
        })?;
    let name = "one UAPI pass of the peers and one netlink pass of the routes";
    findings.paired("join", &ours, name, &base)
}

/// In milliseconds.
fn join(lab: &Lab, agent: &Agent<'_>, last: &[IpNet; 2]) -> Result<f64> {
    create(lab.api(), NODES)?;
    let began = Instant::now();
    let took = inside(agent.namespace(), || {
        let mut netlink = Netlink::open()?;
        // Routes come after peers, in order of their prefixes: these are the last ones of all.
        eventually_every(Duration::from_millis(1), PATIENCE, "the last Node's routes are there", || {
            for net in last {
                ensure!(netlink.has_route(net)?, "no route to {net}");
            }
            Ok(())
        })?;
        Ok(began.elapsed())
    })?;
    agent.at_rest()?;
    inside(agent.namespace(), || {
        let peers = uapi("get=1\n\n")?.matches("public_key=").count();
        ensure!(peers == usize::from(NODES), "the device has {peers} peers");
        Ok(())
    })?;
    Ok(took.as_secs_f64() * 1e3)
}

/// The same by hand, in milliseconds.
fn pass(node: &Node, peers: &str, prefixes: &[IpNet], link: u32) -> Result<f64> {
    inside(node.namespace().pid(), || {
        uapi("set=1\nreplace_peers=true\n\n")?;
        let mut netlink = Netlink::open()?;
        let began = Instant::now();
        uapi(peers)?;
        netlink.set_routes(prefixes, link)?;
        let took = began.elapsed();
        for net in prefixes.iter().rev().take(2) {
            ensure!(netlink.has_route(net)?, "no route to {net}");
        }
        Ok(took.as_secs_f64() * 1e3)
    })
}

/// A user-space device as the agent starts it; the index of its link.
fn start_device(node: &Node) -> Result<u32> {
    let mut command: Command = node.namespace().command(product("wg-overlay")?);
    node.namespace().spawn(command.args(["device", DEVICE]), &node.log("device"))?;
    eventually(Duration::from_secs(20), "the device answers", || {
        inside(node.namespace().pid(), || uapi("get=1\n\n").map(drop))
    })?;
    let key = format!("set=1\nprivate_key={}\nlisten_port=51820\n\n", "5a".repeat(32));
    inside(node.namespace().pid(), || uapi(&key).map(drop))?;
    node.exec("ip", ["link", "set", DEVICE, "up"])?;
    let index = inside(node.namespace().pid(), || {
        // The mount namespace's own /sys shows the node's links.
        Ok(std::fs::read_to_string(Path::new("/sys/class/net").join(DEVICE).join("ifindex"))?)
    })?;
    Ok(index.trim().parse()?)
}
