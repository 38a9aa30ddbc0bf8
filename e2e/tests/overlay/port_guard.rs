//! A hostile pod beside others of its node, with the agent dead: what it sends as another is dropped at its own port.
//! Each attack has its control in the same run: with the table taken away it succeeds.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use wg_overlay_e2e::lab::{LabConfig, Node, Pod, eventually, helper};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, status, with_agents, with_config};
use crate::look::{ensure_lossless, probing};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_hostile_pod_speaks_for_nobody_but_itself", &["ping", "nft", "bash"], hostile),
        Case::new("pods_of_an_earlier_version_go_on_behind_the_port_guard", &["nft", "bash"], upgrade),
        Case::new("what_pods_leave_in_the_port_guard_is_collected", &["nft"], left_over),
    ]
}

/// What a hostile pod tries, the counter of it, and the shell lines, the last of which fails where nobody answers. `$own`
/// is its MAC, `$v4` and `$v6` are a sibling's addresses.
const ASKING: [(&str, &str, &str); 4] = [
    (
        "a foreign IPv4 source",
        "spoofed_source",
        // first in its own name, or the request for the gateway's MAC is what is dropped
        "ping -n -c1 -W5 10.244.1.1; ping -n -c1 -W1 -I 10.244.1.200 10.244.1.1",
    ),
    ("a foreign IPv6 source", "spoofed_source", "ping -n -c1 -W1 -I fd00:244:0:1::200 fd00:244:0:1::1"),
    (
        "an ARP claim to a sibling's address",
        "spoofed_neighbour",
        "ip neigh flush dev eth0; ping -n -c1 -W1 -I $v4 10.244.1.1",
    ),
    (
        "a foreign MAC",
        "spoofed_mac",
        "trap 'ip link set eth0 address '$own EXIT; ip link set eth0 address 02:00:00:00:00:77
        ping -n -c1 -W1 10.244.1.1",
    ),
];

/// A hostile pod and its sibling.
struct Attack<'a> {
    node: &'a Node,
    pod: Pod,
    own: String,
    sibling: &'a Pod,
}

impl<'a> Attack<'a> {
    fn begin(node: &'a Node, sibling: &'a Pod) -> Result<Self> {
        let pod = node.add_pod("hostile")?;
        let told = pod.exec("ip", ["-o", "link", "show", "dev", "eth0"])?;
        let mac = told.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        let own = mac.with_context(|| format!("no MAC in {told}"))?.to_owned();
        let attack = Self { node, pod, own, sibling };
        // the router advertisement is of a link-local address, whose duplicates are being looked for
        eventually(PATIENCE, "the pod has a link-local address", || {
            let said = attack.shell("ip -6 addr show dev eth0 scope link")?;
            ensure!(said.contains("fe80") && !said.contains("tentative"), "{said}");
            Ok(())
        })?;
        attack.shell(
            "ip addr add 10.244.1.200/32 dev eth0; ip addr add fd00:244:0:1::200/128 dev eth0 nodad
            ip addr add $v4/32 dev eth0; ip addr add $v6/128 dev eth0 nodad
            echo 1 > /proc/sys/net/ipv6/conf/eth0/ndisc_notify",
        )?;
        Ok(attack)
    }

    fn shell(&self, lines: &str) -> Result<String> {
        let Self { own, sibling, .. } = self;
        let known = format!("own={own}; v4={}; v6={}", sibling.ipv4()?, sibling.ipv6()?);
        self.pod.exec("bash", ["-euc", &format!("{known}\n{lines}")])
    }

    /// Tells all that the sibling's address is at the pod's MAC: unsolicited neighbour advertisements go out whenever the
    /// link is given one (`ndisc_notify`, Documentation/networking/ip-sysctl.rst).
    fn advertise_neighbour(&self) -> Result<()> {
        // what nobody asked for is no news of a neighbour that is not known (RFC 4861, 7.2.5)
        let _answered = self.node.exec("ping", ["-n", "-c1", "-W1", &self.sibling.ipv6()?.to_string()]);
        self.shell("ip link set eth0 address $own").map(drop)
    }

    fn advertise_router(&self) -> Result<()> {
        let link = self.pod.exec("cat", ["/proc/net/igmp"])?;
        let index = link.lines().find(|line| line.contains("eth0")).and_then(|l| l.split_whitespace().next());
        let index = index.with_context(|| format!("no eth0 in {link}"))?;
        let prober = helper("prober")?;
        self.pod.exec(&prober.display().to_string(), ["advertise", index]).map(drop)
    }

    /// Whether the node believes the sibling's IPv6 address to be at the pod's MAC.
    fn has_sibling(&self) -> Result<bool> {
        let neighbour = self.node.exec("ip", ["neigh", "show", &self.sibling.ipv6()?.to_string()])?;
        Ok(neighbour.contains(&self.own))
    }

    /// Whether the sibling takes the pod for a router.
    fn is_router(&self) -> Result<bool> {
        Ok(!self.sibling.exec("ip", ["-6", "route", "show", "proto", "ra"])?.is_empty())
    }
}

fn hostile() -> Result<()> {
    with_agents(1, |lab| {
        let node = lab.node(1)?;
        let (sibling, other) = (node.add_pod("sibling")?, node.add_pod("other")?);
        // as the kernel's own default has it, without the plugin's care
        sibling.exec("bash", ["-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra"])?;
        let mut prober = probing(lab, &[&sibling, &other])?;
        ensure!(spoofed(node)? == 0, "honest pods are counted: {}", counters(node)?);
        let attack = Attack::begin(node, &sibling)?;
        node.kill_agent()?;
        for (what, counter, lines) in ASKING {
            let before = counted(node, counter)?;
            ensure!(attack.shell(lines).is_err(), "{what} is answered");
            ensure!(counted(node, counter)? > before, "{what} is not counted: {}", counters(node)?);
        }
        let before = (counted(node, "spoofed_neighbour")?, counted(node, "spoofed_router")?);
        attack.advertise_neighbour()?;
        attack.advertise_router()?;
        let after = (counted(node, "spoofed_neighbour")?, counted(node, "spoofed_router")?);
        ensure!(after.0 > before.0 && after.1 > before.1, "claims are not counted: {before:?}, {after:?}");
        ensure!(!attack.has_sibling()? && !attack.is_router()?, "a claim is believed");
        ensure_lossless(&mut prober, "under attack")?;

        node.exec("nft", ["delete table bridge wg-overlay"])?;
        for (what, _, lines) in ASKING {
            eventually(PATIENCE, &format!("control: {what} succeeds"), || attack.shell(lines).map(drop))?;
        }
        eventually(PATIENCE, "control: the neighbour advertisement is believed", || {
            attack.advertise_neighbour()?;
            ensure!(attack.has_sibling()?, "the node does not believe it");
            Ok(())
        })?;
        eventually(PATIENCE, "control: the router advertisement is believed", || {
            attack.advertise_router()?;
            ensure!(attack.is_router()?, "the sibling does not believe it");
            Ok(())
        })?;
        node.start_agent(&[])?;
        await_peers(node, 0)?;
        attack.pod.remove()?;
        prober.await_flow(PATIENCE)
    })
}

/// A version without the table gave both ends of a pod's link random MACs.
fn upgrade() -> Result<()> {
    with_agents(1, |lab| {
        let node = lab.node(1)?;
        let (one, two) = (node.add_pod("one")?, node.add_pod("two")?);
        node.stop_agent()?;
        node.exec("nft", ["delete table bridge wg-overlay"])?;
        for (number, pod) in [&one, &two].into_iter().enumerate() {
            let link = pod.result()["interfaces"][1]["name"].as_str().context("no link")?.to_owned();
            node.exec("ip", ["link", "set", &link, "address", &format!("02:00:00:00:01:0{number}")])?;
            // with the link-local address that it would have had from the beginning
            let inside = format!(
                "ip link set eth0 address 02:00:00:00:02:0{number}; ip -6 addr flush dev eth0 scope link
                ip addr add fe80::ff:fe00:20{number}/64 dev eth0 nodad"
            );
            pod.exec("bash", ["-euc", &inside])?;
        }
        let mut prober = probing(lab, &[&one, &two])?;
        node.start_agent(&[])?;
        eventually(PATIENCE, "the table is there", || counters(node).map(drop))?;
        await_peers(node, 0)?;
        ensure_lossless(&mut prober, "while the agent made the table")?;
        ensure!(spoofed(node)? == 0, "{}", counters(node)?);
        Ok(())
    })
}

fn left_over() -> Result<()> {
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!("1s"))]);
    with_config(LabConfig { nodes: 1, agent, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        let elements = || node.exec("nft", ["list", "set", "bridge", "wg-overlay", "pods"]);
        let (stays, goes) = (node.add_pod("stays")?, node.add_pod("goes")?);
        ensure!(elements()?.matches("wgp").count() == 2, "{}", elements()?);
        goes.remove()?;
        eventually(PATIENCE, "what DEL leaves is removed", || {
            ensure!(elements()?.matches("wgp").count() == 1, "{}", elements()?);
            Ok(())
        })?;
        stays.check()?;
        let drops = status(node)?["guard"]["drops"].clone();
        ensure!(drops["spoofed_source"] == 0, "status tells of {drops}");
        Ok(())
    })
}

/// Every counter of the table, in nft's words.
fn counters(node: &Node) -> Result<String> {
    node.exec("nft", ["-j", "list", "counters", "table", "bridge", "wg-overlay"])
}

fn packets(node: &Node, of: impl Fn(&str) -> bool) -> Result<u64> {
    let told: Value = serde_json::from_str(&counters(node)?)?;
    let all = told["nftables"].as_array().into_iter().flatten().map(|object| &object["counter"]);
    let all = all.filter(|counter| counter["name"].as_str().is_some_and(&of));
    Ok(all.filter_map(|counter| counter["packets"].as_u64()).sum())
}

fn counted(node: &Node, counter: &str) -> Result<u64> {
    packets(node, |name| name == counter)
}

fn spoofed(node: &Node) -> Result<u64> {
    packets(node, |name| name.starts_with("spoofed_"))
}
