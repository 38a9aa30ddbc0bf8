//! When a node is ready for pods: the boot mark, the conflist, a reboot, an agent that is absent, a rival.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{CniError, Lab, LabConfig, Node, NodeConfig, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, ping_all, status, with_agents, with_config};
use crate::witness::ping;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("the_conflist_comes_last_and_only_when_ready", &[], conflist_last),
        Case::new("without_the_boot_mark_no_pod_is_attached", &["ping"], no_mark),
        Case::new("after_a_reboot_pods_wait_for_the_agent", &["ping"], reboot),
        Case::new("pods_come_and_go_without_a_running_agent", &["ping"], no_agent),
        Case::new("a_node_that_is_deleted_takes_no_pods_until_it_is_back", &["ping"], deleted),
        Case::new("a_rival_conflist_is_named", &[], rival),
    ]
}

/// Where the runtime looks.
pub const CONFLIST: &str = "/etc/cni/net.d/10-wg-overlay.conflist";
const MARK: &str = "/run/wg-overlay/network.json";

fn conflist_last() -> Result<()> {
    Lab::test(LabConfig { nodes: 0, ..LabConfig::default() }, |lab| {
        lab.add_node(NodeConfig { register: false, ..NodeConfig::default() })?;
        let node = lab.node(1)?;
        node.start_agent(&[])?;
        // The API has nothing of this node: the agent waits or is degraded, whatever it is called.
        eventually(PATIENCE, "the agent has heard of the cluster", || {
            let status = status(node)?;
            ensure!(
                status["state"] != "NotStarted" && status["cni"]["ready"] == false,
                "{}",
                status["state"]
            );
            Ok(())
        })?;
        ensure!(!node.path(CONFLIST).exists() && !node.path(MARK).exists(), "pods could be attached already");
        lab.api().create("/api/v1/nodes", &node.object())?;
        eventually(PATIENCE, "the conflist appears", || Ok(fs::metadata(node.path(CONFLIST)).map(drop)?))?;
        // At the very moment when a runtime sees it, a pod can be attached and reach its gateway.
        let pod = node.add_pod("first")?;
        eventually(PATIENCE, "the pod reaches its gateway", || ping(&pod, "10.244.1.1"))?;
        let written = |path: &str| Ok::<_, anyhow::Error>(fs::metadata(node.path(path))?.modified()?);
        let (conflist, mark) = (written(CONFLIST)?, written(MARK)?);
        ensure!(mark <= conflist, "the boot mark is newer than the conflist");
        ensure!(written("/opt/cni/bin/wg-overlay-cni")? <= conflist, "the plugin is newer than the conflist");
        Ok(())
    })
}

fn no_mark() -> Result<()> {
    with_agents(1, |lab| {
        let node = lab.node(1)?;
        node.network_status().context("STATUS of a ready node")?;
        node.stop_agent()?;
        fs::remove_file(node.path(MARK))?;
        refuses(node)?;
        node.start_agent(&[])?;
        eventually(PATIENCE, "the agent marks the boot", || node.network_status())?;
        let pod = node.add_pod("p")?;
        eventually(PATIENCE, "the pod reaches its gateway", || ping(&pod, "10.244.1.1"))
    })
}

/// That ADD answers 11 and STATUS 50, and that a DEL goes on all the same.
fn refuses(node: &Node) -> Result<()> {
    let code = |answer: Result<()>| match answer {
        Ok(()) => bail!("it succeeds"),
        Err(error) => error.downcast::<CniError>().map(|error| error.code).context("no error of a plugin"),
    };
    let added = code(node.add_pod("early").map(drop)).context("ADD")?;
    let told = code(node.network_status()).context("STATUS")?;
    ensure!((added, told) == (11, 50), "ADD answers {added}, STATUS {told}");
    Ok(())
}

fn reboot() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let before = node.add_pod("before")?;
        node.kill_agent()?;
        // What a reboot takes: processes, links and their routes, rules, /run. The conflist stays.
        node.exec(
            "bash",
            [
                "-euc",
                "ip netns del before; ip link del wgo0; ip link del wgobr0; nft flush ruleset
                ip route flush proto 87; ip -6 route flush proto 87; rm -rf /run/wg-overlay /run/wireguard",
            ],
        )?;
        ensure!(node.path(CONFLIST).exists(), "the conflist went, too");
        refuses(node)?;
        node.start_agent(&[])?;
        eventually(PATIENCE, "the agent marks the boot", || node.network_status())?;
        let after = node.add_pod("after")?;
        let far = lab.node(2)?.add_pod("far")?;
        ping_all(&[after, far])?;
        // The runtime deletes what it still knows of; the address may be another's by then.
        let held = || status(node).map(|status| status["pods"][0]["used"].clone());
        let used = held()?;
        before.remove_network()?;
        ensure!(held()? == used, "a DEL from before the reboot freed an address: {used} then {}", held()?);
        Ok(())
    })
}

fn no_agent() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let far = lab.node(2)?.add_pod("far")?;
        node.stop_agent()?;
        for name in ["one", "two"] {
            let pod = node.add_pod(name)?;
            pod.check()?;
            for ip in far.ips() {
                eventually(PATIENCE, &format!("{pod} reaches {ip}"), || pod.ping(*ip))?;
            }
            pod.remove()?;
        }
        let links = node.exec("ip", ["-br", "link"])?;
        ensure!(!links.contains("wgp"), "links are left: {links}");
        Ok(())
    })
}

/// It may come back with other PodCIDRs: a pod attached meanwhile would be one that nobody reaches.
fn deleted() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let (before, far) = (node.add_pod("before")?, lab.node(2)?.add_pod("far")?);
        ping_all(&[before, far])?;
        lab.api().delete_node("n1")?;
        eventually(PATIENCE, "STATUS says to wait", || {
            ensure!(node.network_status().is_err(), "it is ready");
            Ok(())
        })?;
        refuses(node)?;
        let mut object = node.object();
        let cidrs = ["10.244.31.0/24", "fd00:244:0:31::/64"];
        object["spec"] = json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs });
        lab.api().create("/api/v1/nodes", &object)?;
        eventually(PATIENCE, "the node takes pods again", || node.network_status())?;
        let after = node.add_pod("after")?;
        ensure!(after.ipv4()?.to_string().starts_with("10.244.31."), "{:?}", after.ips());
        let again = lab.node(2)?.add_pod("again")?;
        ping_all(&[after, again])
    })
}

fn rival() -> Result<()> {
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!("1s"))]);
    with_config(LabConfig { nodes: 1, agent, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        let rival = "/etc/cni/net.d/05-cilium.conflist";
        fs::write(node.path(rival), "{}")?;
        let named = || status(node).map(|status| status["problems"].to_string().contains(rival));
        eventually(PATIENCE, "status names the rival", || {
            ensure!(named()?, "{}", status(node)?["problems"]);
            Ok(())
        })?;
        fs::remove_file(node.path(rival))?;
        eventually(PATIENCE, "status no longer names it", || {
            ensure!(!named()?, "{}", status(node)?["problems"]);
            Ok(())
        })
    })
}
