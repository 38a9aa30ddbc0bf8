//! The agent, the user-space device and `cleanup` with no more than their pods have.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::{Case, skip};

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status};
use crate::look::{ensure_lossless, http, probing};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("in_a_container_the_agent_needs_net_admin_alone", &["ping", "setpriv"], net_admin),
        Case::new(
            "a_contained_cleanup_stays_and_says_when_it_is_done",
            &["ping", "setpriv", "bash"],
            cleanup,
        ),
        Case::new("the_device_of_another_container_is_asked_for", &["ping", "setpriv"], standby),
    ]
}

const SOCKET: &str = "/run/wg-overlay/device.sock";

/// Two nodes whose agents will ask for their device.
fn contained(body: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let agent = Map::from_iter([("deviceSocket".to_owned(), json!(SOCKET))]);
    Lab::test(LabConfig { agent, ..LabConfig::default() }, body)
}

/// Starts the container of a device that sleeps, and gives its process id.
fn start_device(node: &Node) -> Result<u32> {
    let mut command = node.contained()?;
    node.namespace().spawn(command.args(["device", "wgo0", "--standby", SOCKET]), &node.log("device"))
}

/// As a runtime ends a container: all its processes at once. This one's are the parent and its child.
fn kill_container(parent: u32) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    for pid in children.split_whitespace().map(str::to_owned).chain([parent.to_string()]) {
        let pid = pid.parse().ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::KILL).context("kill a process of the device's container")?;
    }
    Ok(())
}

fn await_problem(node: &Node, words: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{} says: {words}", node.name()), || {
        let problems = status(node)?["problems"].to_string();
        ensure!(problems.contains(words), "{problems}");
        Ok(())
    })
}

fn net_admin() -> Result<()> {
    contained(|lab| {
        for node in lab.nodes() {
            for sysctl in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
                node.namespace().set_sysctl(sysctl, "0")?;
            }
            start_device(node)?;
            node.start_contained_agent()?;
        }
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1))?;
        for node in lab.nodes() {
            for sysctl in ["ipv4/conf/all", "ipv6/conf/all"] {
                let value = node.exec("cat", [format!("/proc/sys/net/{sysctl}/forwarding")])?;
                ensure!(value.trim() == "1", "{} of {} is {value}", sysctl, node.name());
            }
            let status = fs::read_to_string(format!("/proc/{}/status", agent_process(node)?))?;
            let capabilities = status.lines().find(|line| line.starts_with("CapEff")).unwrap_or_default();
            ensure!(capabilities.ends_with("0000000000001000"), "more than CAP_NET_ADMIN: {capabilities}");
            ensure!(node.path("/var/lib/wg-overlay/private-key").exists(), "no key on {}", node.name());
            let problems = status_problems(node)?;
            ensure!(problems.iter().all(|p| p.contains("br_netfilter")), "{}: {problems:?}", node.name());
        }
        let pods = pods(lab)?;
        ping_all(&pods)
    })
}

fn agent_process(node: &Node) -> Result<String> {
    let entries =
        fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    let own = network(&node.namespace().pid().to_string())?;
    let is_agent = |pid: &String| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains("/wg-overlay\0agent\0")
            && network(pid).is_ok_and(|n| n == own)
    };
    entries.into_iter().find(is_agent).context("no agent runs")
}

fn status_problems(node: &Node) -> Result<Vec<String>> {
    Ok(serde_json::from_value(status(node)?["problems"].clone())?)
}

fn cleanup() -> Result<()> {
    contained(|lab| {
        let node = lab.node(1)?;
        for node in lab.nodes() {
            start_device(node)?;
            node.start_contained_agent()?;
        }
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1))?;
        let start = |force: &str| {
            let mut command = node.contained()?;
            command.args(["cleanup", "--stay", "--config", "/etc/wg-overlay/config.yaml"]);
            command.env("WG_OVERLAY_CLEANUP_FORCE", force);
            node.namespace().spawn(&mut command, &node.log("cleanup"))
        };
        let log = || fs::read_to_string(node.log("cleanup")).unwrap_or_default();
        let says = |words: &str| {
            eventually(PATIENCE, &format!("cleanup says: {words}"), || {
                ensure!(log().contains(words), "{}", log());
                Ok(())
            })
        };
        // It waits for the agent, then refuses to take the network from a pod.
        let pod = node.add_pod("held")?;
        let waiting = start("false")?;
        says("waiting for its end")?;
        ensure!(status(node)?["ready"] == true, "the agent is not as it was");
        node.stop_agent()?;
        ensure!(!node.namespace().wait(waiting)?.success(), "it went on: {}", log());
        says(&format!("1 pods are attached ({})", pod.ips()[0]))?;
        ensure!(node.exec("ip", ["-br", "link"])?.contains("wgo0"), "it removed something: {}", log());

        // Twice, since a container that ends is started again.
        for _ in 0..2 {
            let forced = start("true")?;
            let done = || http(node, 9821, "/readyz");
            eventually(PATIENCE, "cleanup is ready", || {
                ensure!(done()? == "everything is removed\n", "{}", log());
                Ok(())
            })?;
            kill_process(Pid::from_raw(forced.cast_signed()).context("a process id")?, Signal::TERM)?;
            let status = node.namespace().wait(forced)?;
            ensure!(status.success(), "it ended with {status}: {}", log());
        }
        let left = "ip -br link | grep wg; nft list tables | grep wg-overlay; find /etc/cni/net.d /opt/cni/bin /var/lib/wg-overlay -type f";
        let left = node.exec("bash", ["-c", &format!("{{ {left}; }} || true")])?;
        ensure!(left.is_empty(), "left: {left}");
        let node = lab.api().node("n1")?;
        let ours = [&node["metadata"]["annotations"], &node["status"]["conditions"]]
            .map(ToString::to_string)
            .concat();
        ensure!(!ours.contains("overlay") && !ours.contains("Network"), "left on the Node: {ours}");

        // The device has gone back to sleep, and an agent that comes back finds it.
        let node = lab.node(1)?;
        node.start_contained_agent()?;
        await_peers(node, 1)
    })
}

fn standby() -> Result<()> {
    contained(|lab| {
        let node = lab.node(1)?;
        // The agent is there first; what a killed container left of its socket doesn't answer.
        let killed = start_device(node)?;
        eventually(PATIENCE, "the device listens", || Ok(fs::metadata(node.path(SOCKET)).map(drop)?))?;
        kill_container(killed)?;
        lab.nodes().iter().try_for_each(Node::start_contained_agent)?;
        eventually(PATIENCE, "the agent answers", || status(node).map(drop))?;
        if node.exec("ip", ["link", "add", "wgo-probe", "type", "wireguard"]).is_ok() {
            return skip("the device is the kernel's, and nobody is asked");
        }
        await_problem(node, "the user-space device's pod on this node isn't up yet")?;
        let device = start_device(node)?;
        start_device(lab.node(2)?)?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1))?;
        let pods = pods(lab)?;
        ping_all(&pods)?;

        // An agent that is killed and started leaves the tunnel alone.
        let mut prober = probing(lab, &pods.iter().collect::<Vec<_>>())?;
        prober.reset()?;
        for _ in 0..3 {
            node.kill_agent()?;
            node.start_contained_agent()?;
            await_peers(node, 1)?;
        }
        ensure_lossless(&mut prober, "agents killed")?;

        // The link deleted, the device killed within its container, and the whole container.
        node.exec("ip", ["link", "del", "wgo0"])?;
        await_peers(node, 1)?;
        prober.await_flow(PATIENCE)?;
        node.exec("sh", ["-c", "kill -9 $(pgrep -P $0)", &device.to_string()])?;
        prober.await_flow(PATIENCE)?;
        kill_container(device)?;
        await_problem(node, "isn't up yet")?;
        start_device(node)?;
        await_peers(node, 1)?;
        prober.await_flow(PATIENCE)
    })
}
