//! How large a packet may be, at its edges: don't-fragment pings that just fit and just don't, and TCP between unlike
//! nodes.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, LabConfig, NodeConfig, Pod, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, status, with_agents, with_config};
use crate::witness::{Machine, connect, listen, segment_sizes, watch};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("the_overlay_is_the_underlay_less_80", &["ping"], less_80),
        Case::new("an_underlay_that_changes_is_followed", &["ping"], followed),
        Case::new(
            "a_smaller_node_is_reached_by_a_smaller_route",
            &["ping", "iperf3", "timeout"],
            smaller_node,
        ),
        Case::new("segments_are_clamped_in_both_directions", &["timeout"], clamped),
        Case::new("dual_stack_is_never_below_1280", &["ping", "iperf3", "timeout"], never_below_1280),
    ]
}

fn less_80() -> Result<()> {
    with_agents(2, |lab| {
        let pods = pods(lab)?;
        for (node, pod) in lab.nodes().iter().zip(&pods) {
            let all = [mtu(node, "wgo0")?, mtu(node, "wgobr0")?, mtu(pod, "eth0")?];
            ensure!(all == [1420; 3], "wgo0, wgobr0 and the pod have {all:?}");
            ensure!(status(node)?["device"]["mtu"] == 1420, "status: {}", status(node)?["device"]);
        }
        let [a, b] = pods.as_slice() else { bail!("not two pods") };
        fits_exactly(a, b, 1420)?;
        fits_exactly(b, a, 1420)
    })
}

fn followed() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let (pods, other) = (pods(lab)?, lab.node(2)?);
        let [running, far] = pods.as_slice() else { bail!("not two pods") };
        for (underlay, overlay) in [(1400, 1320), (1500, 1420)] {
            node.exec("ip", ["link", "set", "eth0", "mtu", &underlay.to_string()])?;
            eventually(PATIENCE, &format!("wgo0 and wgobr0 follow to {overlay}"), || {
                let both = [mtu(node, "wgo0")?, mtu(node, "wgobr0")?];
                ensure!(both == [overlay; 2], "they have {both:?}");
                Ok(())
            })?;
            ensure!(mtu(running, "eth0")? == 1420, "a running pod's link was changed");
            let new = node.add_pod(&format!("at{overlay}"))?;
            ensure!(mtu(&new, "eth0")? == overlay, "a new pod has {}", mtu(&new, "eth0")?);
            eventually(PATIENCE, "the other node's routes carry the smaller", || {
                let routes = other.exec("ip", ["route", "show", "10.244.1.0/24"])?
                    + &other.exec("ip", ["-6", "route", "show", "fd00:244:0:1::/64"])?;
                let carried = routes.matches(&format!("mtu {overlay}")).count();
                ensure!(carried == if overlay == 1420 { 0 } else { 2 }, "{routes}");
                ensure!(overlay != 1420 || !routes.contains("mtu"), "{routes}");
                Ok(())
            })?;
            for pod in [running, far] {
                // What a pod has learned of a path it keeps for ten minutes.
                pod.exec("ip", ["route", "flush", "cache"])?;
                pod.exec("ip", ["-6", "route", "flush", "cache"])?;
            }
            fits_exactly(running, far, overlay)?;
            fits_exactly(far, running, overlay)?;
        }
        Ok(())
    })
}

/// n1 and n2 at 1500, n3 at 1400.
fn with_smaller_node(body: impl FnOnce(&Lab, &[Pod]) -> Result<()>) -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        lab.add_node(NodeConfig { mtu: 1400, ..NodeConfig::default() })?;
        lab.nodes().iter().try_for_each(|node| node.start_agent(&[]))?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 2))?;
        let pods = pods(lab)?;
        body(lab, &pods)
    })
}

fn smaller_node() -> Result<()> {
    with_smaller_node(|lab, pods| {
        let [a, b, small] = pods else { bail!("not three pods") };
        ensure!(mtu(small, "eth0")? == 1320, "the smaller node's pod has {}", mtu(small, "eth0")?);
        let routes = |to: &str| lab.node(1)?.exec("ip", ["route", "show", to]);
        eventually(PATIENCE, "the route to the smaller node carries its MTU", || {
            ensure!(routes("10.244.3.0/24")?.contains("mtu 1320"), "{}", routes("10.244.3.0/24")?);
            Ok(())
        })?;
        ensure!(!routes("10.244.2.0/24")?.contains("mtu"), "{}", routes("10.244.2.0/24")?);
        fits_exactly(a, b, 1420)?;
        fits_exactly(a, small, 1320)?;
        fits_exactly(small, a, 1320)?;
        transfer(a, small)?;
        transfer(small, a)
    })
}

fn clamped() -> Result<()> {
    const PORT: u16 = 8080;
    with_smaller_node(|lab, pods| {
        let [large, _, small] = pods else { bail!("not three pods") };
        eventually(PATIENCE, "the route to the smaller node carries its MTU", || {
            let route = lab.node(1)?.exec("ip", ["route", "show", "10.244.3.0/24"])?;
            ensure!(route.contains("mtu 1320"), "{route}");
            Ok(())
        })?;
        for pod in [large, small] {
            listen(lab, pod, PORT)?;
        }
        for (from, to) in [(large, small), (small, large)] {
            watch(large)?;
            watch(small)?;
            for ip in to.ips() {
                eventually(PATIENCE, &format!("{from} connects to {ip}"), || {
                    connect(from, &ip.to_string(), PORT)
                })?;
            }
            // The larger asks for 1420 less its headers, in the first packet or in its answer.
            for (ipv6, headers) in [(false, 40), (true, 60)] {
                let asked = segment_sizes(small, ipv6)?;
                ensure!(
                    asked == BTreeSet::from([1320 - headers]),
                    "{from} to {to}: the smaller is asked for {asked:?}"
                );
                let asked = segment_sizes(large, ipv6)?;
                ensure!(
                    asked == BTreeSet::from([1320 - headers]),
                    "{from} to {to}: the larger is asked for {asked:?}"
                );
            }
        }
        Ok(())
    })
}

fn never_below_1280() -> Result<()> {
    let node = NodeConfig { mtu: 1300, ..NodeConfig::default() };
    with_config(LabConfig { node, ..LabConfig::default() }, |lab| {
        let pods = pods(lab)?;
        for (node, pod) in lab.nodes().iter().zip(&pods) {
            let all = [mtu(node, "wgo0")?, mtu(node, "wgobr0")?, mtu(pod, "eth0")?];
            ensure!(all == [1280; 3], "wgo0, wgobr0 and the pod have {all:?}");
        }
        let [a, b] = pods.as_slice() else { bail!("not two pods") };
        fits_exactly(a, b, 1280)?;
        transfer(b, a)
    })
}

/// A link's MTU in bytes.
fn mtu(machine: &impl Machine, link: &str) -> Result<u64> {
    let text = machine.run("ip", &["-j", "link", "show", "dev", link])?;
    let list: Value = serde_json::from_str(&text)?;
    list[0]["mtu"].as_u64().with_context(|| format!("no MTU in {text}"))
}

/// That packets of this size pass unfragmented from pod to pod in both families, and a byte more doesn't.
fn fits_exactly(from: &Pod, to: &Pod, size: u64) -> Result<()> {
    for ip in to.ips() {
        let headers = if ip.is_ipv4() { 28 } else { 48 };
        let probe = |size: u64| {
            let payload = (size - headers).to_string();
            from.exec("ping", ["-n", "-c1", "-W1", "-M", "do", "-s", &payload, &ip.to_string()]).map(drop)
        };
        eventually(PATIENCE, &format!("{size} bytes from {from} to {ip}"), || probe(size))?;
        ensure!(probe(size + 1).is_err(), "{} bytes passed from {from} to {ip}", size + 1);
    }
    Ok(())
}

/// That TCP carries megabytes from pod to pod in both families.
fn transfer(from: &Pod, to: &Pod) -> Result<()> {
    for ip in to.ips().iter().map(ToString::to_string) {
        let mut server = to.command("iperf3");
        let mut server = server.args(["-s", "-1", "-B", &ip]).stdout(std::process::Stdio::null()).spawn()?;
        let sent = eventually(PATIENCE, &format!("{from} sends to {ip}"), || {
            let text = from.exec("timeout", ["60", "iperf3", "-c", &ip, "-n", "4M", "-J"])?;
            let report: Value = serde_json::from_str(&text)?;
            ensure!(report["error"].is_null(), "{}", report["error"]);
            Ok(report)
        });
        let _ended = server.kill();
        server.wait()?;
        let report = sent?;
        let bytes = report.pointer("/end/sum_received/bytes").and_then(Value::as_u64);
        // The receiver's count ends with the sender's last write, a window short of it.
        ensure!(bytes >= Some(1 << 20), "{from} to {ip}: {bytes:?} bytes arrived");
    }
    Ok(())
}
