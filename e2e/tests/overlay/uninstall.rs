//! `wg-overlay cleanup`: refuses while it would do harm, then leaves a node as it was before the first start.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, OUTSIDE, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status};
use crate::look::{Said, wg_overlay};
use crate::witness::ping;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("cleanup_refuses_while_agent_or_pods_are_there", &["ping"], refuses),
        Case::new(
            "cleanup_leaves_a_node_as_it_was",
            &["ping", "iptables-nft", "iptables-legacy-save"],
            as_it_was,
        ),
        Case::new("cleanup_needs_no_api_server_to_clean_the_kernel", &[], without_api),
    ]
}

fn cleanup(node: &Node, flags: &[&str]) -> Result<Said> {
    let fixed = ["cleanup", "--config", "/etc/wg-overlay/config.yaml"];
    wg_overlay(node, &[&fixed, flags].concat())
}

fn refuses() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        start(lab)?;
        let pods = pods(lab)?;
        let node = lab.node(1)?;
        let said = cleanup(node, &["--force"])?;
        ensure!(said.code != Some(0) && said.err.contains("stop it"), "with the agent: {}", said.err);
        node.stop_agent()?;
        let said = cleanup(node, &[])?;
        ensure!(said.code != Some(0) && said.err.contains("--force"), "with a pod: {}", said.err);
        let named = pods
            .iter()
            .filter(|pod| pod.node() == "n1")
            .all(|pod| said.err.contains(&pod.ips()[0].to_string()));
        ensure!(named, "it does not name the pod by its address: {}", said.err);
        // Neither refusal has changed anything.
        ping_all(&pods)?;
        let said = cleanup(node, &["--force"])?;
        ensure!(said.code == Some(0), "with --force: {} {}", said.out, said.err);
        let links = node.exec("ip", ["-br", "link"])?;
        ensure!(!links.contains("wg"), "links are left: {links}");
        Ok(())
    })
}

fn as_it_was() -> Result<()> {
    let agent = Map::from_iter([("legacyAnnotations".to_owned(), json!(true))]);
    Lab::test(LabConfig { agent, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        node.exec(
            "bash",
            [
                "-euc",
                "ip link add foreign-br type bridge; ip addr add 203.0.113.10/24 dev foreign-br
                ip route add 198.51.100.0/24 via 172.30.0.1 proto 99
                ip rule add from 203.0.113.9 lookup 99
                nft add table inet foreign; nft add chain inet foreign c '{ type filter hook forward priority 5; policy drop; }'
                iptables-nft -A FORWARD -s 203.0.113.0/24 -j ACCEPT; iptables-nft -P FORWARD DROP
                iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP
                echo '{}' > /etc/cni/net.d/99-other.conflist; touch /opt/cni/bin/other",
            ],
        )?;
        // Forwarding stays on: others may have come to need it. It gives each link anycast addresses.
        for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.namespace().set_sysctl(sysctl, "1")?;
        }
        // Written by the lab at the first start.
        std::fs::write(node.path("/etc/wg-overlay/config.yaml"), "")?;
        for target in OUTSIDE {
            ping(node, target)?;
        }
        let before = everything(node)?;
        let annotated = lab.api().node("n1")?["metadata"]["annotations"].clone();
        start(lab)?;
        let pods = pods(lab)?;
        ping_all(&pods)?;
        ensure!(status(node)?["cni"]["ready"] == true, "not ready");
        for pod in pods {
            pod.remove()?;
        }
        node.stop_agent()?;
        let said = cleanup(node, &[])?;
        ensure!(said.code == Some(0), "cleanup: {}{}", said.out, said.err);
        // A user-space device that lost its link ends, and its socket goes, a moment later.
        eventually(PATIENCE, "the node is as it was", || same(&before, &everything(node)?))?;
        let left = lab.api().node("n1")?["metadata"]["annotations"].clone();
        let conditions = lab.api().node("n1")?["status"]["conditions"].clone();
        ensure!(!conditions.to_string().contains("NetworkUnavailable"), "a condition is left: {conditions}");
        let none = |value: &serde_json::Value| value.as_object().is_none_or(Map::is_empty);
        ensure!(left == annotated || (none(&left) && none(&annotated)), "annotations are left: {left}");
        lab.api().clear_requests()?;
        let again = cleanup(node, &[])?;
        let requests = lab.api().requests()?;
        ensure!(requests.iter().all(|r| r["method"] == "GET"), "the second time writes: {requests:?}");
        ensure!(again.code == Some(0), "cleanup again: {}{}", again.out, again.err);
        same(&before, &everything(node)?)
    })
}

fn without_api() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        start(lab)?;
        let node = lab.node(1)?;
        node.stop_agent()?;
        lab.api().set_faults(&json!({ "fail": { "count": 1000, "status": 503 } }))?;
        let said = cleanup(node, &[])?;
        lab.api().clear_faults()?;
        ensure!(said.code != Some(0), "it did not say that the annotations stay");
        ensure!(said.err.contains("kubectl annotate node n1"), "it does not say how to go on: {}", said.err);
        let links = node.exec("ip", ["-br", "link"])?;
        ensure!(!links.contains("wgo"), "links are left: {links}");
        let tables = node.exec("nft", ["list", "tables"])?;
        ensure!(!tables.contains("wg-overlay"), "rules are left: {tables}");
        Ok(())
    })
}

fn start(lab: &Lab) -> Result<()> {
    lab.nodes().iter().try_for_each(|node| node.start_agent(&[]))?;
    lab.nodes().iter().try_for_each(|node| await_peers(node, lab.nodes().len() - 1))
}

/// All that a person can list of a node, by command.
fn everything(node: &Node) -> Result<BTreeMap<&'static str, String>> {
    const LISTS: [&str; 11] = [
        "ip -d link",
        "ip -d addr",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule; ip -6 rule",
        "nft --stateless list ruleset",
        "iptables-save | grep -v '^#'",
        "ip6tables-save | grep -v '^#'",
        "iptables-legacy-save | grep -v '^#'",
        "ip6tables-legacy-save | grep -v '^#'",
        // The folder of every user-space WireGuard's sockets is no one's.
        "find /run /opt /etc /var/lib -path /run/.etc -prune -o -path /run/netns/* -prune -o -print | sort | grep -vx /run/wireguard",
    ];
    // Packet counters, and what the kernel learns of a bridge or an address in its own time.
    let changing = r"s/\[[0-9]*:[0-9]*\]//; s/ (gc_timer|hello_timer|tcn_timer|topology_change_timer|bridge_id|designated_root) [^ ]*//g; s/expires [^ ]*//";
    LISTS
        .into_iter()
        .map(|list| {
            let script = format!("{{ {list} || true; }} 2>&1 | sed -E '{changing}'");
            Ok((list, node.exec("bash", ["-c", &script])?))
        })
        .collect()
}

fn same(before: &BTreeMap<&str, String>, after: &BTreeMap<&str, String>) -> Result<()> {
    for (list, after) in after {
        let before = before.get(list).map(String::as_str).unwrap_or_default();
        let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
        let left = after.lines().filter(|line| !before.lines().any(|other| other == *line));
        let lines: Vec<String> =
            gone.map(|l| format!("- {l}")).chain(left.map(|l| format!("+ {l}"))).collect();
        ensure!(before == after, "`{list}` is not as it was:\n{}", lines.join("\n"));
    }
    Ok(())
}
