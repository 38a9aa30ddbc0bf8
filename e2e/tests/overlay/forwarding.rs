//! Where the host's own settings would stop pods' packets: firewalls that drop, forwarding that is off.

use anyhow::{Result, ensure};
use serde_json::{Map, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, OUTSIDE, eventually, helper};
use wg_overlay_e2e::suite::{Case, skip};

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status};
use crate::witness::{Machine as _, ping};

pub fn cases() -> Vec<Case> {
    const LEGACY: &[&str] =
        &["ping", "iptables-legacy", "iptables-legacy-restore", "ip6tables-legacy-restore"];
    vec![
        Case::new(
            "iptables_that_drop_let_our_traffic_pass",
            &["ping", "iptables-nft", "ip6tables-nft"],
            || dropping(["iptables-nft", "ip6tables-nft"]),
        ),
        Case::new("legacy_iptables_that_drop_let_our_traffic_pass", LEGACY, || {
            dropping(["iptables-legacy", "ip6tables-legacy"])
        }),
        Case::new("a_persons_nftables_that_drop_let_our_traffic_pass", &["ping"], dropping_nftables),
        Case::new("forwarding_that_is_off_is_enabled", &["ping"], forwarding_off),
        Case::new("a_router_advertised_route_outlives_forwarding", &[], router_advertised),
        Case::new("without_bridge_netfilter_the_agent_says_what_to_load", &[], no_bridge_netfilter),
    ]
}

/// What a careful person lets in: the API server's answers, the neighbours, the node itself.
const LET_IN: &[&str] = &["-i lo", "-p tcp --sport 6443"];
const NEIGHBOURS: &[&str] = &["-p icmpv6 --icmpv6-type 135", "-p icmpv6 --icmpv6-type 136"];

/// On n1 the chains drop before its agent starts, on n2 only later.
fn dropping(programs: [&str; 2]) -> Result<()> {
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!("2s"))]);
    Lab::test(LabConfig { agent, ..LabConfig::default() }, |lab| {
        let [early, late] = lab.nodes() else { return skip("not two nodes") };
        drop_all(early, programs)?;
        let before = chains(early, programs)?;
        start(lab)?;
        let pods = pods(lab)?;
        let passes = || -> Result<()> {
            ping_all(&pods)?;
            for (node, pod) in lab.nodes().iter().zip(&pods) {
                let own = node.addresses().into_iter().map(|ip| ip.to_string());
                let gateways =
                    [format!("10.244.{}.1", node.number()), format!("fd00:244:0:{}::1", node.number())];
                for target in own.chain(gateways).chain(OUTSIDE.map(str::to_owned)) {
                    eventually(PATIENCE, &format!("{pod} reaches {target}"), || ping(pod, &target))?;
                }
                for target in pods.iter().flat_map(|pod| pod.ips()).map(ToString::to_string) {
                    eventually(PATIENCE, &format!("{} reaches {target}", node.name()), || {
                        ping(node, &target)
                    })?;
                }
            }
            Ok(())
        };
        passes()?;
        drop_all(late, programs)?;
        for node in lab.nodes() {
            await_our_rules(node, programs)?;
        }
        passes()?;
        // Where the chains no longer drop, our rules go.
        for program in programs {
            late.exec(program, ["-w", "-P", "FORWARD", "ACCEPT"])?;
            late.exec(program, ["-w", "-P", "INPUT", "ACCEPT"])?;
        }
        eventually(PATIENCE, "rules that are not needed go", || {
            let chains = chains(late, programs)?;
            ensure!(!chains.contains("wg-overlay"), "{chains}");
            Ok(())
        })?;
        early.stop_agent()?;
        early.wg_overlay(&["cleanup", "--config", "/etc/wg-overlay/config.yaml", "--force"])?;
        let after = chains(early, programs)?;
        ensure!(after == before, "the host's chains were\n{before}\nand are after cleanup\n{after}");
        Ok(())
    })
}

fn start(lab: &Lab) -> Result<()> {
    lab.nodes().iter().try_for_each(|node| node.start_agent(&[]))?;
    lab.nodes().iter().try_for_each(|node| await_peers(node, lab.nodes().len() - 1))
}

fn drop_all(node: &Node, programs: [&str; 2]) -> Result<()> {
    for (program, more) in programs.into_iter().zip([&[][..], NEIGHBOURS]) {
        for open in LET_IN.iter().chain(more) {
            node.exec("bash", ["-euc", &format!("{program} -w -A INPUT {open} -j ACCEPT")])?;
        }
        node.exec(program, ["-w", "-P", "INPUT", "DROP"])?;
        node.exec(program, ["-w", "-P", "FORWARD", "DROP"])?;
    }
    Ok(())
}

fn chains(node: &Node, programs: [&str; 2]) -> Result<String> {
    programs.iter().map(|program| node.exec(program, ["-w", "-S"])).collect()
}

fn await_our_rules(node: &Node, programs: [&str; 2]) -> Result<()> {
    eventually(PATIENCE, &format!("{} has our rules where its own drop", node.name()), || {
        for program in programs {
            let listed = node.exec(program, ["-w", "-S"])?;
            let ours = |chain: &str, what: &str| {
                let start = format!("-A {chain} ");
                let mut lines = listed.lines().filter(|line| line.starts_with(&start));
                lines.any(|l| l.contains(what) && l.contains("--comment wg-overlay "))
            };
            ensure!(
                ours("FORWARD", "-i wgobr0")
                    && ours("FORWARD", "-o wgobr0")
                    && ours("INPUT", "--dport 51820")
                    && ours("INPUT", "-i wgobr0"),
                "{listed}"
            );
        }
        Ok(())
    })
}

fn dropping_nftables() -> Result<()> {
    // Chains of a person's own: by policy, and by a last rule. The resync is far: events must do it.
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!("1h"))]);
    Lab::test(LabConfig { agent, ..LabConfig::default() }, |lab| {
        start(lab)?;
        let pods = pods(lab)?;
        for node in lab.nodes() {
            node.nft(
                "table inet mine {
                    chain forward { type filter hook forward priority 10; policy drop; }
                    chain input { type filter hook input priority 10; policy accept;
                        iifname lo accept
                        tcp sport 6443 accept
                        icmpv6 type { 135, 136 } accept
                        counter drop
                    }
                }",
            )?;
            eventually(PATIENCE, "our rules are in the chains that drop", || {
                let listed = node.exec("nft", ["list table inet mine"])?;
                let ours = listed.matches("comment \"wg-overlay\"").count();
                ensure!(ours == 11, "{ours} rules of ours:\n{listed}");
                Ok(())
            })?;
        }
        ping_all(&pods)
    })
}

fn forwarding_off() -> Result<()> {
    Lab::test(LabConfig::default(), |lab| {
        const SYSCTLS: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        for node in lab.nodes() {
            for sysctl in SYSCTLS {
                node.namespace().set_sysctl(sysctl, "0")?;
            }
        }
        start(lab)?;
        for node in lab.nodes() {
            for sysctl in SYSCTLS {
                ensure!(read(node, sysctl)? == "1", "{sysctl} on {} stays 0", node.name());
            }
        }
        let pods = pods(lab)?;
        ping_all(&pods)?;
        pods.iter().try_for_each(|pod| {
            let outside = OUTSIDE.into_iter();
            outside.into_iter().try_for_each(|target| {
                eventually(PATIENCE, &format!("{pod} reaches {target}"), || ping(pod, target))
            })
        })
    })
}

fn router_advertised() -> Result<()> {
    Lab::test(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        node.namespace().set_sysctl("net/ipv6/conf/all/forwarding", "0")?;
        node.namespace().set_sysctl("net/ipv6/conf/eth0/accept_ra", "1")?;
        // A second link without such a route stays as it is.
        node.exec("ip", ["link", "add", "eth1", "type", "veth", "peer", "name", "nowhere"])?;
        node.namespace().set_sysctl("net/ipv6/conf/eth1/accept_ra", "1")?;
        let advertised = || node.exec("ip", ["-6", "route", "show", "default", "proto", "ra"]);
        let index = lab.control().exec("cat", ["/sys/class/net/eth0/ifindex"])?;
        let program = helper("prober")?.display().to_string();
        eventually(PATIENCE, "the router's advertisement gives a default route", || {
            lab.control().exec(&program, ["advertise", index.trim()])?;
            ensure!(!advertised()?.is_empty(), "there is none");
            Ok(())
        })?;
        node.start_agent(&[])?;
        await_peers(node, 0)?;
        ensure!(read(node, "net/ipv6/conf/all/forwarding")? == "1", "forwarding stays off");
        ensure!(read(node, "net/ipv6/conf/eth0/accept_ra")? == "2", "accept_ra of eth0 is not 2");
        ensure!(read(node, "net/ipv6/conf/eth1/accept_ra")? == "1", "accept_ra of eth1 was changed");
        ensure!(!advertised()?.is_empty(), "the node lost its default route");
        Ok(())
    })
}

fn no_bridge_netfilter() -> Result<()> {
    Lab::test(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        // A module can't be unloaded for one namespace; an agent can be kept from seeing what it brings.
        node.exec("bash", ["-euc", "mkdir /run/empty; for each in /proc/sys/net/*; do [ $each = /proc/sys/net/bridge ] || { mkdir /run/empty/${each##*/}; mount --bind $each /run/empty/${each##*/}; }; done; mount --rbind /run/empty /proc/sys/net"])?;
        node.start_agent(&[])?;
        await_peers(node, 0)?;
        eventually(PATIENCE, "the agent says what to load", || {
            let status = status(node)?;
            let problems = status["problems"].to_string();
            ensure!(status["state"] == "Degraded" && problems.contains("modprobe br_netfilter"), "{status}");
            Ok(())
        })
    })
}

fn read(node: &Node, sysctl: &str) -> Result<String> {
    Ok(node.run("cat", &[&format!("/proc/sys/{sysctl}")])?.trim().to_owned())
}
