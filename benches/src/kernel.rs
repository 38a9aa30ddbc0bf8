//! Kernel WireGuard, in a virtual machine: pod to pod by us, by the same links made by hand, and by WireGuard alone.
//!
//! ```text
//!   pod ── veth ── bridge ── wg ── switch ── wg ── bridge ── veth ── pod      n1, n2: by agents and the plugin
//!                                                                             n3, n4: by `ip` and `wg`
//!                        wg ── switch ── wg                                   n3, n4: without pods
//! ```
//! The host's half starts the machine with this very program in it; the guest's half measures and prints JSON.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, Pod, eventually, run};

use crate::engines::genkey;
use crate::report::Findings;
use crate::stats::median;
use crate::{Options, each_round};

const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds of one transfer. An emulated machine's speed comes and goes: short ones, side by side, see the same of it.
const SECONDS: &str = "1";
/// Transfers of each way in a round of the bench.
const TRANSFERS: u32 = 4;
/// Starts of the machine that the rounds are divided among: by where its kernel lies in memory, one start favours one way
/// or the other by up to a fifth, from its first round to its last.
const STARTS: u32 = 4;

/// Gbit/s, transfer by transfer.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Series {
    ours: Vec<f64>,
    by_hand: Vec<f64>,
    bare: Vec<f64>,
}

/// Measures the rows of `Group::Kernel`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel-vm");
    let own = std::env::current_exe().context("find this program")?;
    let mut series = Series::default();
    let starts = options.rounds.min(STARTS);
    for _ in 0..starts {
        let rounds = options.rounds.div_ceil(starts).to_string();
        let said = run(Command::new(&script).arg(&own).arg(rounds))?;
        let json = said.lines().rev().find(|line| line.starts_with('{'));
        let start: Series = serde_json::from_str(json.with_context(|| format!("the guest said: {said}"))?)?;
        series.ours.extend(start.ours);
        series.by_hand.extend(start.by_hand);
        series.bare.extend(start.bare);
    }
    let [ours, by_hand, bare] = [series.ours, series.by_hand, series.bare].map(|rates| by_round(&rates));
    findings.paired("kernel-tunnel", &ours, "ip and wg by hand", &by_hand)?;
    findings.paired("kernel-bare", &ours, "WireGuard without pods", &bare)
}

/// The median of each round's transfers.
fn by_round(rates: &[f64]) -> Vec<f64> {
    rates.chunks(TRANSFERS as usize).filter_map(median).collect()
}

/// What is measured: where iperf3 runs and whom it calls.
struct Way<'a> {
    command: &'a dyn Fn() -> Command,
    target: String,
}

/// The guest's half: prints the series.
pub fn guest(options: &Options) -> Result<()> {
    let lab = Lab::new(LabConfig { nodes: 4, ..LabConfig::default() })?;
    let [n1, n2, n3, n4] = [lab.node(1)?, lab.node(2)?, lab.node(3)?, lab.node(4)?];
    let [from, to] = by_agents(n1, n2)?;
    by_hand(n3, n4)?;
    let pod = || from.command("iperf3");
    let hand = || {
        let mut command = n3.namespace().command("ip");
        command.args(["netns", "exec", "hand", "iperf3"]);
        command
    };
    let node = || n3.namespace().command("iperf3");
    let mut server = to.command("iperf3");
    to.spawn(server.arg("-s"), &n2.log("iperf3"))?;
    let mut server = n4.namespace().command("ip");
    n4.namespace().spawn(server.args(["netns", "exec", "hand", "iperf3", "-s"]), &n4.log("iperf3-pod"))?;
    let mut server = n4.namespace().command("iperf3");
    n4.namespace().spawn(server.arg("-s"), &n4.log("iperf3"))?;
    let paths = [
        Way { command: &pod, target: to.ipv4()?.to_string() },
        Way { command: &hand, target: "10.250.4.2".to_owned() },
        Way { command: &node, target: "10.251.0.4".to_owned() },
    ];
    for path in &paths {
        eventually(PATIENCE, &format!("iperf3 to {}", path.target), || transfer(path, "1").map(drop))?;
    }
    let subjects = [&paths[0], &paths[1], &paths[2]];
    let rounds = options.rounds * TRANSFERS;
    let [ours, by_hand, bare] = each_round(rounds, subjects, |path, rates: &mut Vec<f64>| {
        rates.push(transfer(path, SECONDS)?);
        Ok(())
    })?;
    println!("{}", serde_json::to_string(&Series { ours, by_hand, bare })?);
    Ok(())
}

/// Received, in Gbit/s.
fn transfer(path: &Way<'_>, seconds: &str) -> Result<f64> {
    let text = run((path.command)().args(["-J", "-c", &path.target, "-t", seconds]))?;
    let report: Value = serde_json::from_str(&text)?;
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(rate.context("iperf3 tells no rate")? / 1e9)
}

fn by_agents(n1: &Node, n2: &Node) -> Result<[Pod; 2]> {
    for node in [n1, n2] {
        node.start_agent(&[])?;
    }
    for node in [n1, n2] {
        eventually(PATIENCE, "the plugin is ready for pods", || node.network_status())?;
    }
    let pods = [n1.add_pod("p")?, n2.add_pod("p")?];
    let links = n1.exec("ip", ["-d", "link", "show", "wgo0"])?;
    ensure!(links.contains("wireguard"), "wgo0 is none of the kernel's: {links}");
    Ok(pods)
}

/// The same links, addresses and routes by hand, IPv4 alone as the traffic is.
fn by_hand(n3: &Node, n4: &Node) -> Result<()> {
    let [(private3, public3), (private4, public4)] = [genkey()?, genkey()?];
    for (node, far, private, public) in [(n3, n4, private3, public4), (n4, n3, private4, public3)] {
        std::fs::write(node.path("/run/hand.key"), private)?;
        let (own, other) = (node.number(), far.number());
        let endpoint = far.addresses().first().copied().context("no address")?;
        node.namespace().ip(&[
            "link add hand0 mtu 1420 type wireguard".to_owned(),
            format!("addr add 10.251.0.{own}/32 dev hand0"),
            "link set hand0 up".to_owned(),
            "link add handbr0 mtu 1420 type bridge mcast_snooping 0".to_owned(),
            "link set handbr0 up".to_owned(),
            format!("addr add 10.250.{own}.1/24 dev handbr0"),
            "netns add hand".to_owned(),
            "link add handpod mtu 1420 type veth peer name eth0 mtu 1420 netns hand".to_owned(),
            "link set handpod master handbr0 up".to_owned(),
            format!("route add 10.250.{other}.0/24 dev hand0"),
            format!("route add 10.251.0.{other}/32 dev hand0"),
        ])?;
        for line in [
            "link set lo up".to_owned(),
            format!("addr add 10.250.{own}.2/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via 10.250.{own}.1"),
        ] {
            node.exec("ip", ["-n", "hand"].into_iter().chain(line.split(' ')))?;
        }
        node.namespace().set_sysctl("net/ipv4/ip_forward", "1")?;
        let set = format!(
            "set hand0 private-key /run/hand.key listen-port 51999 peer {public} endpoint {endpoint}:51999 \
             allowed-ips 10.250.{other}.0/24,10.251.0.{other}/32"
        );
        node.exec("wg", set.split(' '))?;
    }
    Ok(())
}
