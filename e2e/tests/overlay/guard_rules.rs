//! What comes from the underlay, what pods may not send to, and where the guarded prefixes come from.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, NodeConfig, Pod, eventually, helper};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, status, with_agents};
use crate::guards::counted;
use crate::witness::{Machine as _, connect, listen, ping, seen, watch};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_pods_source_from_the_underlay_is_dropped", &[], forged_source),
        Case::new(
            "a_new_flow_from_the_underlay_reaches_a_pod_only_where_the_node_led_it",
            &["timeout"],
            new_flow,
        ),
        Case::new("pods_cannot_send_to_a_wireguard_port", &[], tunnel_port),
        Case::new("the_tunnel_is_not_tracked", &["conntrack", "ping"], untracked),
        Case::new("without_known_prefixes_nothing_is_programmed", &[], no_prefixes),
        Case::new("the_prefixes_are_read_from_kubeadm", &[], kubeadm),
    ]
}

/// Sends one UDP packet to a node from an address that the outside takes for it.
fn send_as(lab: &Lab, source: &str, node: &Node) -> Result<()> {
    let (length, index) = if source.contains(':') { (128, 1) } else { (32, 0) };
    let to = node.addresses().get(index).map(|ip| SocketAddr::new(*ip, 9)).context("no address")?;
    let address = format!("{source}/{length}");
    lab.control().exec("ip", ["addr", "add", &address, "dev", "eth0", "nodad"])?;
    let mut command = lab.control().command(helper("prober")?);
    let sent = wg_overlay_e2e::lab::run(command.args(["once", "--from", source, "--to", &to.to_string()]));
    lab.control().exec("ip", ["addr", "del", &address, "dev", "eth0"])?;
    sent.map(drop)
}

fn forged_source() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        watch(node)?;
        // A peer's pod, an own pod, a pod of nobody; and the control: an address outside of the pod networks.
        let forged = ["10.244.2.7", "10.244.1.7", "10.244.200.7", "fd00:244:0:2::7", "fd00:244:0:1::7"];
        for source in forged {
            let before = counted(node, "plaintext_in")?;
            send_as(lab, source, node)?;
            eventually(PATIENCE, &format!("a packet from {source} is dropped and counted"), || {
                // One or more: IPv6 asks for the node's neighbour with this source, too.
                ensure!(counted(node, "plaintext_in")? > before, "none is counted");
                Ok(())
            })?;
        }
        for honest in ["198.51.100.7", "2001:db8:7::7"] {
            send_as(lab, honest, node)?;
            eventually(PATIENCE, &format!("a packet from {honest} arrives"), || {
                let seen = seen(node, honest.contains(':'))?;
                ensure!(seen.contains(&(honest.to_owned(), "eth0".to_owned())), "{seen:?}");
                Ok(())
            })?;
        }
        let mut seen_of_pods = seen(node, false)?;
        seen_of_pods.extend(seen(node, true)?);
        seen_of_pods.retain(|(source, _)| forged.contains(&source.as_str()));
        ensure!(seen_of_pods.is_empty(), "forged packets arrived: {seen_of_pods:?}");
        let told = status(node)?["guard"]["drops"]["plaintext_in"].as_u64();
        ensure!(told >= Some(5), "status tells of {told:?} drops");
        Ok(())
    })
}

fn new_flow() -> Result<()> {
    const PORT: u16 = 8080;
    const NODE_PORT: u16 = 30080;
    with_agents(1, |lab| {
        let node = lab.node(1)?;
        let pod = node.add_pod("p")?;
        listen(lab, &pod, PORT)?;
        for (pods, via) in node.pod_cidrs().iter().zip(node.addresses()) {
            lab.control().ip(&[format!("route replace {pods} via {via}")])?;
        }
        let (ip4, ip6) = (pod.ipv4()?, pod.ipv6()?);
        node.nft(&format!(
            "table inet service {{
                chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
                    iifname eth0 meta nfproto ipv4 tcp dport {NODE_PORT} dnat ip to {ip4}:{PORT}
                    iifname eth0 meta nfproto ipv6 tcp dport {NODE_PORT} dnat ip6 to [{ip6}]:{PORT}
                }}
            }}"
        ))?;
        for (ip, address) in pod.ips().iter().zip(node.addresses()) {
            let address = address.to_string();
            eventually(PATIENCE, &format!("a port of {address} leads to the pod"), || {
                connect(lab.control(), &address, NODE_PORT)
            })?;
            let before = counted(node, "plaintext_in")?;
            ensure!(connect(lab.control(), &ip.to_string(), PORT).is_err(), "the outside reached {ip}");
            let dropped = counted(node, "plaintext_in")? - before;
            ensure!(dropped > 0, "the refused flow to {ip} was not counted");
        }
        for overlay in ["10.244.1.1", "fd00:244:0:1::1"] {
            ensure!(
                ping(lab.control(), overlay).is_err(),
                "the outside reached the overlay address {overlay}"
            );
        }
        Ok(())
    })
}

fn tunnel_port() -> Result<()> {
    with_agents(2, |lab| {
        let (own, other) = (lab.node(1)?, lab.node(2)?);
        let pod = own.add_pod("p")?;
        let own_addresses =
            own.addresses().into_iter().chain(["10.244.1.1".parse()?, "fd00:244:0:1::1".parse()?]);
        for target in other.addresses().into_iter().chain(own_addresses) {
            is_closed(own, &pod, SocketAddr::new(target, 51820))?;
        }
        // The control: the port beside it is open to pods.
        watch(other)?;
        for (from, target) in pod.ips().iter().zip(other.addresses()) {
            once(&pod, &from.to_string(), &SocketAddr::new(target, 51821).to_string())?;
            eventually(PATIENCE, &format!("a packet to another port of {target} arrives"), || {
                let seen = seen(other, target.is_ipv6())?;
                let source = own.addresses().into_iter().find(|ip| ip.is_ipv6() == target.is_ipv6());
                let source = source.context("no address")?.to_string();
                ensure!(seen.contains(&(source, "eth0".to_owned())), "{seen:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// That a packet of a node's pod to this socket of WireGuard is dropped and counted.
pub fn is_closed(node: &Node, pod: &Pod, to: SocketAddr) -> Result<()> {
    let from = if to.is_ipv4() { pod.ipv4()? } else { pod.ipv6()? };
    let before = counted(node, "pod_to_tunnel")?;
    once(pod, &from.to_string(), &to.to_string())?;
    eventually(PATIENCE, &format!("a packet to {to} is dropped and counted"), || {
        let counted = counted(node, "pod_to_tunnel")? - before;
        ensure!(counted == 1, "{counted} are counted");
        Ok(())
    })
}

/// Sends one UDP packet from a pod.
fn once(pod: &Pod, from: &str, to: &str) -> Result<()> {
    let program = helper("prober")?;
    pod.exec(&program.display().to_string(), ["once", "--from", from, "--to", to]).map(drop)
}

fn untracked() -> Result<()> {
    with_agents(2, |lab| {
        let (from, to) = (lab.node(1)?.add_pod("p")?, lab.node(2)?.add_pod("p")?);
        for target in to.ips() {
            eventually(PATIENCE, "the tunnel carries packets both ways", || from.ping(*target))?;
        }
        for node in lab.nodes() {
            for family in ["ipv4", "ipv6"] {
                let tracked = node.exec("conntrack", ["-L", "-f", family])?;
                let pings = tracked.lines().filter(|line| line.contains("icmp")).count();
                ensure!(pings > 0, "{}: tracks nothing, so this shows nothing:\n{tracked}", node.name());
                ensure!(
                    !tracked.contains("port=51820"),
                    "{}: the tunnel is tracked:\n{tracked}",
                    node.name()
                );
            }
        }
        Ok(())
    })
}

/// A node whose agent is not told the cluster's prefixes.
fn with_untold_agent(body: impl FnOnce(&Lab, &Node) -> Result<()>) -> Result<()> {
    Lab::test(LabConfig { nodes: 0, ..LabConfig::default() }, |lab| {
        lab.add_node(NodeConfig::default())?;
        let node = lab.node(1)?;
        node.set_agent_config("podCIDRs", Value::Null);
        node.set_agent_config("resyncInterval", json!("1s"));
        body(lab, node)
    })
}

fn no_prefixes() -> Result<()> {
    with_untold_agent(|_, node| {
        node.start_agent(&[])?;
        eventually(PATIENCE, "the agent is degraded and says what it lacks", || {
            let status = status(node)?;
            let problems = status["problems"].to_string();
            ensure!(status["state"] == "Degraded" && problems.contains("podCIDRs"), "{status}");
            Ok(())
        })?;
        let links = node.exec("ip", ["-br", "link"])?;
        ensure!(!links.contains("wgo"), "there are links of ours: {links}");
        let routes = node.exec("ip", ["route", "show", "table", "all", "proto", "87"])?
            + &node.exec("ip", ["-6", "route", "show", "table", "all", "proto", "87"])?;
        ensure!(routes.is_empty(), "there are routes of ours: {routes}");
        let tables = node.exec("nft", ["list", "tables"])?;
        ensure!(!tables.contains("wg-overlay"), "there are rules of ours: {tables}");
        ensure!(node.network_status().is_err(), "pods could be attached");
        Ok(())
    })
}

fn kubeadm() -> Result<()> {
    with_untold_agent(|lab, node| {
        node.start_agent(&[])?;
        let configuration = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  \
            podSubnet: 10.244.0.0/16,fd00:244::/56\n  serviceSubnet: 10.96.0.0/12\n";
        let map = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": { "name": "kubeadm-config", "namespace": "kube-system" },
            "data": { "ClusterConfiguration": configuration },
        });
        lab.api().create("/api/v1/namespaces/kube-system/configmaps", &map)?;
        await_peers(node, 0)?;
        let guarded = status(node)?["guard"]["prefixes"].clone();
        ensure!(guarded == json!(["10.244.0.0/16", "fd00:244::/56"]), "guarded: {guarded}");
        let pod = node.add_pod("p")?;
        for gateway in ["10.244.1.1", "fd00:244:0:1::1"] {
            eventually(PATIENCE, "the pod reaches its gateway", || ping(&pod, gateway))?;
        }
        Ok(())
    })
}
