//! What changes nothing writes nothing: neither to the kernel nor to the API.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, with_config};
use crate::look::{
    await_peer, await_rounds, create_node, ensure_lossless, hosts, key_of, made_up, made_up_key, metric,
    probing,
};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("an_agents_restart_writes_nothing", needs, restart),
        Case::new("heartbeats_change_nothing", needs, heartbeats),
        Case::new("annotations_are_written_only_where_they_differ", needs, annotations),
    ]
}

/// Resyncs each second, so that what one would write is seen soon.
fn quick() -> LabConfig {
    let mut config = LabConfig::default();
    config.agent.insert("resyncInterval".into(), json!("1s"));
    config
}

/// The clients' requests that write; Events are no state.
fn writes(lab: &Lab) -> Result<Vec<Value>> {
    let all = lab.api().requests()?;
    let writes = |r: &Value| {
        r["method"] != "GET"
            && !r["uri"].as_str().is_some_and(|uri| uri.split('?').next().is_some_and(is_events))
    };
    Ok(all.into_iter().filter(writes).collect())
}

fn is_events(path: &str) -> bool {
    path.contains("/events")
}

fn restart() -> Result<()> {
    with_config(quick(), |lab| {
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        let node = lab.node(1)?;
        // A name whose answer is not in yet is no reason to write either.
        let mut named = made_up("named", 80);
        named["metadata"]["annotations"][crate::look::ENDPOINT] = json!("localhost.lab:51820");
        hosts(node, "172.30.0.80 localhost.lab")?;
        create_node(lab, &named)?;
        await_peer(node, &made_up_key(80), "the name is resolved", |peer| {
            peer.endpoint == "172.30.0.80:51820" && peer.keepalive == "25"
        })?;
        await_rounds(node)?;
        node.kill_agent()?;
        let monitor = Monitor::start(lab, node)?;
        lab.api().clear_requests()?;
        node.start_agent(&[])?;
        await_peers(node, 2)?;
        await_rounds(node)?;
        let seen = monitor.stop(node)?;
        ensure!(seen.is_empty(), "the restart changed the kernel:\n{seen}");
        let changes = metric(node, "wg_overlay_kernel_changes_total")?;
        ensure!(changes == 0.0, "the agent counts {changes} changes");
        let writes = writes(lab)?;
        ensure!(writes.is_empty(), "{writes:?}");
        ensure!(!lab.api().requests()?.is_empty(), "no request was counted at all");
        ensure_lossless(&mut prober, "an agent restarts")
    })
}

fn heartbeats() -> Result<()> {
    with_config(quick(), |lab| {
        let node = lab.node(1)?;
        await_rounds(node)?;
        let monitor = Monitor::start(lab, node)?;
        let before = metric(node, "wg_overlay_kernel_changes_total")?;
        lab.api().clear_requests()?;
        // Without it the agent would say it again.
        let network = json!({ "type": "NetworkUnavailable", "status": "False" });
        for beat in 0..20 {
            let condition = json!({ "type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:00:{beat:02}Z") });
            for name in ["n1", "n2"] {
                lab.api().patch_status(name, &json!({ "status": { "conditions": [condition, network] } }))?;
                lab.api().annotate(name, &json!({ "example.com/beat": beat.to_string() }))?;
            }
        }
        await_rounds(node)?;
        let after = metric(node, "wg_overlay_kernel_changes_total")?;
        ensure!(before == after, "{before} changes became {after}");
        let seen = monitor.stop(node)?;
        ensure!(seen.is_empty(), "a heartbeat changed the kernel:\n{seen}");
        let writes = writes(lab)?;
        ensure!(writes.is_empty(), "{writes:?}");
        // The same channel brings what matters.
        create_node(lab, &made_up("real", 81))?;
        await_peers(node, 2)?;
        ensure!(metric(node, "wg_overlay_kernel_changes_total")? > after, "a new peer is not counted");
        Ok(())
    })
}

fn annotations() -> Result<()> {
    with_config(quick(), |lab| {
        let key = key_of(lab, "n1")?;
        lab.api().clear_requests()?;
        for wrong in [json!({ (crate::look::KEY): made_up_key(7) }), json!({ (crate::look::KEY): null })] {
            lab.api().annotate("n1", &wrong)?;
            eventually(PATIENCE, "n1 puts its key back", || {
                ensure!(lab.api().annotation("n1", crate::look::KEY)?.as_ref() == Some(&key), "not yet");
                Ok(())
            })?;
        }
        await_rounds(lab.node(1)?)?;
        let writes = writes(lab)?;
        ensure!(writes.len() == 2, "two changes, and these writes: {writes:?}");
        let on_status =
            |w: &Value| w["uri"].as_str().is_some_and(|uri| uri.starts_with("/api/v1/nodes/n1/status"));
        ensure!(writes.iter().all(on_status), "{writes:?}");
        // What a person wrote stays.
        lab.api().annotate("n1", &json!({ "wg-overlay.io/persistent-keepalive": "7" }))?;
        await_peer(lab.node(2)?, &key, "the keepalive is taken over", |peer| peer.keepalive == "7")?;
        await_rounds(lab.node(1)?)?;
        let kept = lab.api().annotation("n1", "wg-overlay.io/persistent-keepalive")?;
        ensure!(kept.as_deref() == Some("7"), "{kept:?}");
        Ok(())
    })
}

/// `ip monitor`: every change of links, addresses, routes and rules of a node, from its start on.
struct Monitor {
    process: Child,
    log: PathBuf,
    from: usize,
}

impl Monitor {
    /// Starts it and waits until it has seen a change made for it.
    fn start(lab: &Lab, node: &Node) -> Result<Self> {
        // The kernel gives a bridge with its first port a link-local address, and tells of it when no other has it.
        eventually(PATIENCE, "the kernel has given all addresses", || {
            let tentative = node.exec("ip", ["-6", "addr", "show", "tentative"])?;
            ensure!(tentative.trim().is_empty(), "{tentative}");
            Ok(())
        })?;
        // And of a port once more when its forward-delay timer ends, 15 s after it came up (net/bridge/br_stp_timer.c).
        let mut ended = None;
        eventually(PATIENCE, "the kernel has told of all ports", || {
            let left = "cat /sys/class/net/*/brport/forward_delay_timer 2> /dev/null || true";
            let left = node.exec("sh", ["-c", left])?;
            if left.lines().any(|left| left != "0") {
                ended = None;
            }
            // Timers of 15 s may be late by up to 640 ms (kernel/time/timer.c: the wheel's granularity).
            ensure!(ended.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(1), "{left}");
            Ok(())
        })?;
        let log = lab.folder().join("logs").join(format!("{}-ip-monitor.log", node.name()));
        let mut command = node.namespace().command("ip");
        command.args(["monitor", "link", "address", "route", "rule"]).stdout(File::create(&log)?);
        let mut monitor = Self { process: command.spawn().context("start ip monitor")?, log, from: 0 };
        let come_and_go = |ip: &str| {
            node.exec("ip", ["addr", "add", ip, "dev", "lo"])?;
            node.exec("ip", ["addr", "del", &format!("{ip}/32"), "dev", "lo"])
        };
        eventually(PATIENCE, "ip monitor sees an address come and go", || {
            come_and_go("198.51.100.1")?;
            ensure!(monitor.read()?.contains("198.51.100.1"), "nothing");
            Ok(())
        })?;
        // Of an address that goes, the kernel tells its local route last (net/ipv4/fib_frontend.c).
        come_and_go("198.51.100.3")?;
        eventually(PATIENCE, "ip monitor has seen all of what was made for it", || {
            ensure!(monitor.read()?.contains("Deleted local 198.51.100.3 "), "not the last change");
            Ok(())
        })?;
        monitor.from = monitor.read()?.len();
        Ok(monitor)
    }

    /// What it has seen since, up to a second change made for it.
    fn stop(self, node: &Node) -> Result<String> {
        node.exec("ip", ["addr", "add", "198.51.100.2", "dev", "lo"])?;
        let seen = eventually(PATIENCE, "ip monitor has seen all", || {
            let text = self.read()?;
            let (seen, _) = text.split_once("198.51.100.2").context("not the last change")?;
            Ok(seen.get(self.from..).unwrap_or_default().to_owned())
        })?;
        // The last line is the control's beginning.
        Ok(seen.rsplit_once('\n').map(|(whole, _)| whole.to_owned()).unwrap_or_default())
    }

    fn read(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}
