//! The nodes that come and go: what each is to the cluster at a moment, and what may become of it.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, Node, eventually_every};
use wg_overlay_e2e::look::converged::PATIENCE;
use wg_overlay_e2e::look::peers::{Difference, difference, wanted};
use wg_overlay_e2e::look::{create_node, wg_overlay};

use crate::run::Run;

/// Last parts of underlay addresses, and numbers of PodCIDRs, that no node of the lab begins with.
const FREE: std::ops::RangeInclusive<u8> = 100..=250;

/// An agent that was gone while a peer's address changed leaves the old one while their session lasts, three minutes: it
/// can't tell it from one that the peer roamed to.
const SETTLED: Duration = Duration::from_secs(240);

/// All nodes, in the lab's order.
pub struct Members {
    /// How many rotations have begun.
    pub rotations: u32,
    all: Vec<Member>,
    renamed: u32,
}

struct Member {
    /// Of its Node object.
    name: String,
    /// The number of its PodCIDRs, if they are not those it began with.
    cidr: Option<u8>,
    /// The last part of its addresses likewise.
    host: Option<u8>,
    /// Whether it is a part of the cluster.
    up: bool,
}

impl Members {
    pub fn new(lab: &Lab) -> Self {
        let member = |node: &Node| Member { name: node.name().to_owned(), cidr: None, host: None, up: true };
        Self { all: lab.nodes().iter().map(member).collect(), rotations: 0, renamed: 0 }
    }

    /// One change of one node.
    pub fn step(&mut self, run: &mut Run, lab: &Lab, at: usize) -> Result<()> {
        let node = lab.node(at + 1)?;
        let hosts: Vec<u8> = FREE.filter(|n| self.all.iter().all(|m| m.host != Some(*n))).collect();
        let cidrs: Vec<u8> = FREE.filter(|n| self.all.iter().all(|m| m.cidr != Some(*n))).collect();
        let member = self.all.get_mut(at).context("no such member")?;
        if !member.up {
            create_node(lab, &member.object(node))?;
            member.up = true;
            return node.start_agent(&[]);
        }
        match run.random.u8(..6) {
            0 => {
                end_agent(run, node)?;
                lab.api().delete_node(&member.name)?;
                member.up = false;
            }
            1 => {
                let host = run.choose(&hosts);
                member.host = Some(host);
                node.readdress(host)?;
                lab.api().patch_status(&member.name, &json!({ "status": node.status() }))?;
            }
            2 => {
                member.cidr = Some(run.choose(&cidrs));
                lab.api().patch_node(&member.name, &json!({ "spec": member.object(node)["spec"] }))?;
            }
            3 => {
                end_agent(run, node)?;
                match fs::remove_file(node.path("/var/lib/wg-overlay/private-key")) {
                    // It was killed before it had written one.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    other => other.context("remove the key")?,
                }
                node.start_agent(&[])?;
            }
            4 => {
                // while it starts, or another rotates, it may not
                let said = wg_overlay(node, &["rotate-key", "--no-wait"])?;
                self.rotations += u32::from(said.code == Some(0));
            }
            _ => {
                end_agent(run, node)?;
                self.renamed += 1;
                let old = std::mem::replace(&mut member.name, format!("{}-{}", node.name(), self.renamed));
                // In either order: for a moment two Nodes claim one PodCIDR and one address, or none does.
                let before = run.random.bool();
                if before {
                    lab.api().delete_node(&old)?;
                }
                create_node(lab, &member.object(node))?;
                node.set_agent_config("nodeName", json!(member.name));
                node.start_agent(&[])?;
                run.pause(500);
                if !before {
                    lab.api().delete_node(&old)?;
                }
            }
        }
        Ok(())
    }

    /// How many are a part of the cluster.
    pub fn up(&self) -> usize {
        self.all.iter().filter(|member| member.up).count()
    }

    /// Waits until every node's peers are the Nodes of the API; gives what differs if that does not happen.
    pub fn settle(&self, lab: &Lab) -> Result<Difference> {
        let mut last = Difference::default();
        let mut look = || {
            let wanted = wanted(lab)?;
            last = Difference::default();
            for (member, node) in self.all.iter().zip(lab.nodes()).filter(|(member, _)| member.up) {
                let on = |all: Vec<String>| all.into_iter().map(|what| format!("{}: {what}", member.name));
                let found = difference(node, &member.name, &wanted)?;
                last.stale.extend(on(found.stale));
                last.missing.extend(on(found.missing));
                last.wrong.extend(on(found.wrong));
                let second = node.exec("ip", ["link", "show", "wgo1"]);
                last.stale.extend(second.ok().map(|_| format!("{}: the second device", member.name)));
            }
            ensure!(last.count() == 0, "{last}");
            Ok(())
        };
        let settled = eventually_every(PATIENCE / 60, SETTLED, "every node's peers are the Nodes", &mut look);
        if last.count() == 0 {
            settled?;
        }
        Ok(last)
    }
}

impl Member {
    fn object(&self, node: &Node) -> Value {
        let mut object = node.object();
        object["metadata"]["name"] = json!(self.name);
        if let Some(number) = self.cidr {
            let cidrs = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number:x}::/64")];
            object["spec"] = json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs });
        }
        object
    }
}

fn end_agent(run: &mut Run, node: &Node) -> Result<()> {
    if run.random.bool() { node.kill_agent() } else { node.stop_agent().map(drop) }
}
