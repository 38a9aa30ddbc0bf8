//! The underlay, pods by a stand-in plugin, the witnesses of the capture, the prober, the cleanup.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{CniError, Families, Lab, LabConfig, Node, NodeConfig, Pod, eventually};
use wg_overlay_e2e::suite::Case;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("nodes_reach_each_other_in_both_families", &["ping"], nodes_reach_each_other),
        Case::new("a_node_of_one_family_has_no_other", &[], one_family),
        Case::new("the_underlay_mtu_is_kept", &["ping"], underlay_mtu),
        Case::new("a_node_moves_to_another_address", &["ping"], readdress),
        Case::new("a_node_keeps_the_host_out", &[], a_node_keeps_the_host_out),
        Case::new("a_pod_comes_and_goes_by_the_conflist", &["ping"], pod_by_conflist),
        Case::new("a_plugins_refusal_keeps_its_code", &[], plugin_refusal),
        Case::new("plaintext_between_nodes_is_counted", &["ping"], plaintext_is_counted),
        Case::new("a_capture_without_traffic_proves_itself", &[], capture_proves_itself),
        Case::new("a_capture_that_was_not_proved_is_refused", &[], unproved_capture),
        Case::new("the_prober_counts_what_is_lost", &[], prober_counts_losses),
        Case::new("a_dropped_lab_leaves_nothing", &[], dropped_lab),
        Case::new("a_killed_lab_is_removed_at_the_next_start", &[], killed_lab),
    ]
}

fn nodes_reach_each_other() -> Result<()> {
    Lab::test(LabConfig { nodes: 3, ..LabConfig::default() }, |lab| {
        for from in lab.nodes() {
            for to in lab.nodes() {
                for address in to.addresses() {
                    from.exec("ping", ["-n", "-c1", "-W2", &address.to_string()])?;
                }
            }
            for outside in wg_overlay_e2e::lab::OUTSIDE {
                from.exec("ping", ["-n", "-c1", "-W2", outside])?;
            }
            from.exec("bash", ["-c", "exec 3<>/dev/tcp/172.30.0.1/6443"])?;
        }
        Ok(())
    })
}

fn one_family() -> Result<()> {
    Lab::test(LabConfig { nodes: 0, ..LabConfig::default() }, |lab| {
        lab.add_node(NodeConfig { families: Families::V4, ..NodeConfig::default() })?;
        lab.add_node(NodeConfig { families: Families::V6, ..NodeConfig::default() })?;
        let addresses =
            |number, family| lab.node(number)?.exec("ip", [family, "-br", "addr", "show", "scope", "global"]);
        ensure!(addresses(1, "-6")?.is_empty() && addresses(1, "-4")?.contains("172.30.0.11/24"));
        ensure!(addresses(2, "-4")?.is_empty() && addresses(2, "-6")?.contains("fd00:30::c/64"));
        let node = lab.api().node("n2")?;
        ensure!(
            node.pointer("/status/addresses/0")
                == Some(&json!({ "type": "InternalIP", "address": "fd00:30::c" }))
        );
        Ok(())
    })
}

fn underlay_mtu() -> Result<()> {
    let node = NodeConfig { mtu: 1400, ..NodeConfig::default() };
    Lab::test(LabConfig { node, ..LabConfig::default() }, |lab| {
        let probe = |size: &str| {
            lab.node(1)?.exec("ping", ["-n", "-c1", "-W1", "-M", "do", "-s", size, "172.30.0.12"])
        };
        probe("1372").context("1400 bytes with headers")?;
        ensure!(probe("1373").is_err(), "1401 bytes passed an underlay of 1400");
        Ok(())
    })
}

fn readdress() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        lab.readdress(2, 99)?;
        ensure!(lab.api().node("n2")?.to_string().contains("172.30.0.99"));
        for (new, old) in [("172.30.0.99", "172.30.0.12"), ("fd00:30::63", "fd00:30::c")] {
            lab.node(1)?.exec("ping", ["-n", "-c1", "-W2", new])?;
            ensure!(lab.node(1)?.exec("ping", ["-n", "-c1", "-W1", old]).is_err(), "{old} still answers");
        }
        lab.node(2)?.exec("ping", ["-n", "-c1", "-W2", "192.0.2.1"]).context("the default route stayed")?;
        Ok(())
    })
}

fn a_node_keeps_the_host_out() -> Result<()> {
    Lab::test(LabConfig { nodes: 2, ..LabConfig::default() }, |lab| {
        let (one, two) = (lab.node(1)?, lab.node(2)?);
        for folder in ["/run", "/etc", "/opt", "/var/lib", "/etc/cni/net.d", "/opt/cni/bin"] {
            fs::write(one.path(folder).join("wgo-e2e-mark"), "")?;
            for other in [two.path(folder), folder.into()] {
                ensure!(!other.join("wgo-e2e-mark").exists(), "{} shows what n1 wrote", other.display());
            }
        }
        let id = |node: &Node| fs::read_to_string(node.path("/etc/machine-id"));
        ensure!(id(one)? != id(two)?, "two nodes have one machine-id");
        ensure!(one.exec("hostname", [""; 0])?.trim() == "n1");
        ensure!(!one.exec("ls", ["/sys/class/net"])?.contains("br0"));
        Ok(())
    })
}

fn pod_by_conflist() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        let pods = stand_in_pods(lab)?;
        let [one, two] = &pods;
        ensure!(one.ipv4()?.to_string() == "10.244.1.10" && two.ipv6()?.to_string() == "fd00:244:0:2::10");
        one.check()?;
        for address in two.ips() {
            one.ping(*address)?;
        }
        lab.node(1)?.network_status()?;
        let node = lab.node(1)?;
        for pod in pods {
            pod.remove()?;
        }
        ensure!(node.exec("ip", ["netns", "list"])?.is_empty());
        ensure!(!node.exec("ip", ["link"])?.contains("pod0"), "DEL was not called");
        Ok(())
    })
}

fn plugin_refusal() -> Result<()> {
    Lab::test(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        ensure!(node.add_pod("early").is_err(), "a pod without a conflist");
        install(node, r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"try later"}'; exit 1"#)?;
        let Err(error) = node.add_pod("refused") else { bail!("the refusal was ignored") };
        let error = error.downcast_ref::<CniError>().context("not the plugin's error")?;
        ensure!((error.code, error.msg.as_str()) == (11, "try later"));
        ensure!(node.exec("ip", ["netns", "list"])?.lines().count() <= 1, "the refused sandbox stayed");
        Ok(())
    })
}

fn plaintext_is_counted() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        let [one, two] = stand_in_pods(lab)?;
        let mut capture = lab.capture()?;
        capture.positive_control()?;
        for address in two.ips() {
            one.exec("ping", ["-n", "-c3", "-i0.2", "-W2", &address.to_string()])?;
        }
        // 2,500 bytes are two fragments, each with the pod's address.
        one.exec("ping", ["-n", "-c1", "-s2500", "-W2", &two.ipv4()?.to_string()])?;
        // Only the destination is a pod's, and only the source of the answer.
        for address in two.ips() {
            lab.node(1)?.exec("ping", ["-n", "-c1", "-W2", &address.to_string()])?;
        }
        let report = capture.stop()?;
        // 3 pings in each family, a fragmented one, one from the node in each family; all answered.
        let wanted = 2 * (6 + 2 + 2);
        ensure!(report.plaintext() == wanted, "{report}");
        ensure!(
            report.class("plaintext").packets == wanted + 2 && report.seen == wanted + 2,
            "the witnesses differ: {report}"
        );
        ensure!(report.class("control").packets == 0 && report.class("neighbour").packets > 0, "{report}");
        ensure!(report.assert_no_plaintext().is_err(), "plaintext was not refused");
        Ok(())
    })
}

fn capture_proves_itself() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        let mut capture = lab.capture()?;
        capture.positive_control()?;
        lab.node(1)?.exec("bash", ["-c", "echo x > /dev/udp/172.30.0.12/51820"])?;
        lab.node(1)?.exec("bash", ["-c", "exec 3<>/dev/tcp/172.30.0.1/6443"])?;
        let report = capture.stop()?;
        ensure!(report.positive_controls == 2 && report.class("wireguard").packets == 1, "{report}");
        ensure!(report.class("control").packets >= 3, "{report}");
        report.assert_no_plaintext()
    })
}

fn unproved_capture() -> Result<()> {
    Lab::test(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        let report = lab.capture()?.stop()?;
        ensure!(report.assert_no_plaintext().is_err(), "a capture without positive control was believed");
        Ok(())
    })
}

fn prober_counts_losses() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        let pods = stand_in_pods(lab)?;
        let mut prober = lab.prober(&pods.iter().collect::<Vec<_>>())?;
        prober.await_flow(Duration::from_secs(10))?;
        prober.await_packets(50, Duration::from_secs(20))?;
        for pair in prober.report()? {
            ensure!(pair.lost == 0, "lost without a cause: {pair:?}");
        }
        let node = lab.node(1)?;
        node.exec("ip", ["link", "set", "eth0", "down"])?;
        eventually(Duration::from_secs(10), "losses are counted", || {
            ensure!(prober.report()?.iter().all(|pair| pair.lost >= 10));
            Ok(())
        })?;
        let report = prober.stop()?;
        ensure!(report.len() == 4, "two pods, two directions, two families: {report:?}");
        ensure!(
            report.iter().all(|pair| pair.longest_run >= 10 && pair.sent == pair.received + pair.lost),
            "{report:?}"
        );
        ensure!(report.iter().any(|pair| pair.from == "n1/p1" && pair.to == "n2/p2"), "{report:?}");
        Ok(())
    })
}

fn dropped_lab() -> Result<()> {
    let lab = Lab::new(LabConfig::default())?;
    let folder = lab.folder().to_owned();
    let anchors: Vec<u32> = lab.nodes().iter().map(|node| node.namespace().pid()).collect();
    // A process that its starter no longer knows, as a device that the agent started.
    let orphan = lab.node(1)?.exec("sh", ["-c", "sleep infinity >/dev/null 2>&1 & echo $!"])?;
    drop(lab);
    ensure!(!folder.exists());
    for pid in anchors.iter().map(u32::to_string).chain([orphan.trim().to_owned()]) {
        ensure!(!runs(&pid), "process {pid} is left");
    }
    Ok(())
}

fn killed_lab() -> Result<()> {
    // Only the process list matters: the first line is a test process that is gone.
    let folder = std::env::temp_dir().join(format!("wgo-e2e-killed-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let mut anchor = std::process::Command::new("unshare").args(["-n", "-m", "sleep", "infinity"]).spawn()?;
    let pid = anchor.id();
    eventually(Duration::from_secs(5), "the anchor has its namespaces", || {
        ensure!(fs::read_link(format!("/proc/{pid}/ns/mnt"))? != fs::read_link("/proc/self/ns/mnt")?);
        Ok(())
    })?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let started =
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).context("a start time")?;
    fs::write(folder.join("processes"), format!("{pid} 1\n{pid} {started}\n"))?;
    drop(Lab::new(LabConfig { nodes: 0, ..LabConfig::default() })?);
    ensure!(!folder.exists());
    ensure!(!runs(&pid.to_string()), "the anchor of a killed run is left");
    anchor.wait()?;
    Ok(())
}

fn runs(pid: &str) -> bool {
    // A zombie has no namespaces.
    fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok()
}

/// One pod a node by a plugin in shell, with routes to each other through the underlay: a network
/// without encryption.
fn stand_in_pods(lab: &Lab) -> Result<[Pod; 2]> {
    let mut pods = Vec::new();
    for node in lab.nodes() {
        let n = node.number();
        install(node, &STAND_IN.replace("NUMBER", &n.to_string()))?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.namespace().set_sysctl(key, "1")?;
        }
        for other in lab.nodes().iter().filter(|other| other.number() != n) {
            for (cidr, via) in other.pod_cidrs().iter().zip(other.addresses()) {
                node.exec("ip", ["route", "add", cidr, "via", &via.to_string()])?;
            }
        }
        pods.push(node.add_pod(&format!("p{n}"))?);
    }
    pods.try_into().map_err(|pods: Vec<Pod>| anyhow!("{} pods instead of two", pods.len()))
}

fn install(node: &Node, script: &str) -> Result<()> {
    let plugin = node.path("/opt/cni/bin/stand-in");
    fs::write(&plugin, format!("#!/bin/sh\nset -eu\n{script}\n"))?;
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
    let list = json!({ "cniVersion": "1.0.0", "name": "stand-in", "plugins": [{ "type": "stand-in" }] });
    Ok(fs::write(node.path("/etc/cni/net.d/10-stand-in.conflist"), list.to_string())?)
}

const STAND_IN: &str = r#"
case $CNI_COMMAND in
ADD)
  ip link add pod0 type veth peer name tmp0
  ip link set tmp0 netns "${CNI_NETNS##*/}"
  in="ip -n ${CNI_NETNS##*/}"
  $in link set tmp0 name "$CNI_IFNAME" up
  echo 0 > /proc/sys/net/ipv6/conf/pod0/accept_dad
  ip link set pod0 up
  ip addr add 10.244.NUMBER.1/24 dev pod0
  ip addr add fd00:244:0:NUMBER::1/64 dev pod0 nodad
  $in addr add 10.244.NUMBER.10/24 dev "$CNI_IFNAME"
  $in addr add fd00:244:0:NUMBER::10/64 dev "$CNI_IFNAME" nodad
  $in route add default via 10.244.NUMBER.1
  $in route add default via fd00:244:0:NUMBER::1
  echo '{"cniVersion":"1.0.0","ips":[{"address":"10.244.NUMBER.10/24"},{"address":"fd00:244:0:NUMBER::10/64"}]}';;
DEL) ip link del pod0;;
*) cat > /dev/null;;
esac
"#;
