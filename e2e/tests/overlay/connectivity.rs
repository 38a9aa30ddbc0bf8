//! Packets arrive, and with the right source: pod to pod, node to pod, pod to a node, pod to the outside.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{LabConfig, Node, OUTSIDE, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, ping_all, pods, with_agents, with_config};
use crate::witness::{arrives_as, ping};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("pods_on_different_nodes_reach_each_other", &["ping", "wg"], pods_reach_each_other),
        Case::new("pods_and_nodes_reach_each_other_in_every_pair", &["ping"], every_pair),
        Case::new("what_leaves_the_pod_networks_takes_the_nodes_address", &["ping"], to_the_outside),
        Case::new("pods_see_each_others_own_addresses", &["ping"], pod_to_pod_is_not_translated),
        Case::new("a_pod_reaches_another_node_beside_the_tunnel", &["ping"], pod_to_other_node),
        Case::new("excepted_networks_see_pod_addresses", &["ping"], excepted_networks),
        Case::new("without_masquerade_the_outside_sees_pod_addresses", &["ping"], without_masquerade),
    ]
}

fn pods_reach_each_other() -> Result<()> {
    with_agents(2, |lab| ping_all(&pods(lab)?))
}

fn every_pair() -> Result<()> {
    with_agents(3, |lab| {
        let pods = pods(lab)?;
        ping_all(&pods)?;
        for node in lab.nodes() {
            for ip in pods.iter().flat_map(|pod| pod.ips()).map(ToString::to_string) {
                eventually(PATIENCE, &format!("{} reaches {ip}", node.name()), || ping(node, &ip))?;
            }
        }
        for (node, pod) in lab.nodes().iter().zip(&pods) {
            let addresses = node.addresses().into_iter().map(|ip| ip.to_string());
            for ip in gateways(node).into_iter().chain(addresses) {
                eventually(PATIENCE, &format!("{pod} reaches its own node at {ip}"), || ping(pod, &ip))?;
            }
        }
        Ok(())
    })
}

fn to_the_outside() -> Result<()> {
    with_agents(1, |lab| {
        let (node, pod) = (lab.node(1)?, lab.node(1)?.add_pod("p")?);
        for (target, source) in OUTSIDE.into_iter().zip(node.addresses()) {
            arrives_as(&pod, target, lab.control(), &source.to_string(), "eth0")?;
        }
        Ok(())
    })
}

fn pod_to_pod_is_not_translated() -> Result<()> {
    with_agents(2, |lab| {
        let pods = pods(lab)?;
        let neighbour = lab.node(1)?.add_pod("neighbour")?;
        let [from, to] = pods.as_slice() else { bail!("not two pods") };
        for at in [to, &neighbour] {
            for (source, target) in from.ips().iter().zip(at.ips()) {
                arrives_as(from, &target.to_string(), at, &source.to_string(), "eth0")?;
            }
        }
        Ok(())
    })
}

fn pod_to_other_node() -> Result<()> {
    with_agents(2, |lab| {
        let (here, there) = (lab.node(1)?, lab.node(2)?);
        let pod = here.add_pod("p")?;
        for (source, target) in here.addresses().iter().zip(there.addresses()) {
            arrives_as(&pod, &target.to_string(), there, &source.to_string(), "eth0")?;
        }
        Ok(())
    })
}

fn excepted_networks() -> Result<()> {
    let excepted = json!(["192.0.2.0/24", "2001:db8::/64", "172.30.0.1/32", "fd00:30::1/128"]);
    let agent = Map::from_iter([("nonMasqueradeCIDRs".to_owned(), excepted)]);
    with_config(LabConfig { nodes: 2, agent, ..LabConfig::default() }, |lab| {
        lead_to_pods(lab)?;
        let pods = pods(lab)?;
        let (from, to) = (pods.first().context("no pod")?, pods.last().context("no pod")?);
        for (target, source) in OUTSIDE.into_iter().zip(from.ips()) {
            let source = source.to_string();
            arrives_as(from, target, lab.control(), &source, "eth0")?;
            // A new flow from there is let in, as it is said to be of one network with the pods.
            eventually(PATIENCE, &format!("the outside reaches {source}"), || ping(lab.control(), &source))?;
        }
        for (source, target) in from.ips().iter().zip(to.ips()) {
            arrives_as(from, &target.to_string(), to, &source.to_string(), "eth0")?;
        }
        let other = lab.node(2)?.addresses();
        for (source, target) in lab.node(1)?.addresses().iter().zip(other) {
            arrives_as(from, &target.to_string(), lab.node(2)?, &source.to_string(), "eth0")?;
        }
        Ok(())
    })
}

fn without_masquerade() -> Result<()> {
    let agent = Map::from_iter([("masquerade".to_owned(), json!(false))]);
    with_config(LabConfig { nodes: 1, agent, ..LabConfig::default() }, |lab| {
        lead_to_pods(lab)?;
        let pod = lab.node(1)?.add_pod("p")?;
        for (target, source) in OUTSIDE.into_iter().zip(pod.ips()) {
            arrives_as(&pod, target, lab.control(), &source.to_string(), "eth0")?;
        }
        Ok(())
    })
}

/// The overlay addresses of a node, its pods' gateways.
fn gateways(node: &Node) -> [String; 2] {
    [format!("10.244.{}.1", node.number()), format!("fd00:244:0:{}::1", node.number())]
}

/// Gives the outside routes to the pods, as a router beside the cluster would have them.
fn lead_to_pods(lab: &wg_overlay_e2e::lab::Lab) -> Result<()> {
    for node in lab.nodes() {
        for (pods, via) in node.pod_cidrs().iter().zip(node.addresses()) {
            lab.control().ip(&[format!("route replace {pods} via {via}")])?;
        }
    }
    Ok(())
}
