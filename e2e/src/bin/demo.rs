//! `make demo`: the main job on one machine, without Kubernetes: three nodes, pods, an encrypted network between them.
//!
//! Each step says what it does and what it found; the first that fails ends the demo with its reason and status 1.

use std::{
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, Pod, eventually, product};

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: u8 = 3;
const STEPS: usize = 8;

fn main() -> ExitCode {
    let started = Instant::now();
    match demo() {
        Ok(()) => {
            println!("\nAll {STEPS} steps passed in {} s.", started.elapsed().as_secs());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "namespaces need root: sudo make demo");
    step(1, &format!("{NODES} nodes as namespaces on one underlay, a Node API, an agent on each"));
    let lab = Lab::new(LabConfig { nodes: NODES, ..LabConfig::default() })?;
    let outcome = tour(&lab);
    if outcome.is_err() {
        lab.show_logs();
    }
    if std::env::var_os("DEMO_KEEP").is_some() {
        println!("\nDEMO_KEEP: everything stays up until you press enter.\n{}", lab.look_around());
        println!("Inside a node: wg-overlay status, wg show, ip route, nft list table inet wg-overlay");
        std::io::stdin().read_line(&mut String::new())?;
    }
    outcome
}

fn tour(lab: &Lab) -> Result<()> {
    let mut capture = lab.capture()?;
    capture.positive_control()?;
    println!("   a deliberate plaintext packet in each family was sent and counted: the captures see");
    for node in lab.nodes() {
        node.start_agent(&[])?;
    }
    for node in lab.nodes() {
        await_peers(node, lab.nodes().len() - 1)?;
        println!("   {} is converged", node.name());
    }

    step(2, "a pod on each node, attached by the CNI plugin");
    let pods = lab.nodes().iter().map(|n| n.add_pod("demo")).collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        let ips: Vec<_> = pod.ips().iter().map(ToString::to_string).collect();
        println!("   {pod}: {}", ips.join(", "));
    }
    matrix(lab, &pods)?;

    step(4, "what `wg-overlay status` says on n1");
    print!("{}", indent(&status_text(lab.node(1)?)?));

    step(5, "an agent is killed with -9 under traffic between all pairs of pods");
    agent_killed(lab, &pods)?;

    step(6, "a node gets other addresses");
    readdressed(lab, &pods)?;

    step(7, "a node is removed from the cluster");
    node_removed(lab)?;

    step(8, "what the underlay carried");
    let report = capture.stop()?;
    print!("{}", indent(&report.to_string()));
    report.assert_no_plaintext()?;
    ensure!(report.class("wireguard").packets > 0, "the capture saw no WireGuard at all");
    println!("   plaintext pod packets: 0; packets that the captures lost: 0");
    Ok(())
}

/// Every pair, in both families: pod to pod, and node to pod.
fn matrix(lab: &Lab, pods: &[Pod]) -> Result<()> {
    step(3, "ping and throughput between every pair, in both families");
    println!("   {:10} {:10} {:26} {:>9} {:>12}", "FROM", "TO", "ADDRESS", "PING", "TCP");
    for to in pods {
        for ip in to.ips().iter().map(ToString::to_string) {
            for (node, from) in lab.nodes().iter().zip(pods).filter(|(_, from)| from.ips() != to.ips()) {
                row(&from.to_string(), to, &ip, &|program| from.command(program))?;
                row(node.name(), to, &ip, &|program| node.namespace().command(program))?;
            }
        }
    }
    Ok(())
}

fn row(from: &str, to: &Pod, ip: &str, command: &dyn Fn(&str) -> Command) -> Result<()> {
    let ping = eventually(PATIENCE, &format!("{from} reaches {ip}"), || round_trip(command("ping"), ip))?;
    let speed = throughput(to, ip, || command("iperf3"))?;
    println!("   {from:10} {:10} {ip:26} {ping:>6} ms {speed:>5} Mbit/s", to.to_string());
    Ok(())
}

fn round_trip(mut command: Command, ip: &str) -> Result<String> {
    let output = command.args(["-n", "-c3", "-i0.05", "-W2", "-q", ip]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "no answer: {text}");
    // rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms
    let average = text.rsplit_once("= ").and_then(|(_, rtt)| rtt.split('/').nth(1));
    average.map(str::to_owned).with_context(|| format!("ping printed {text}"))
}

fn throughput(to: &Pod, ip: &str, from: impl Fn() -> Command) -> Result<u64> {
    let mut server = to.command("iperf3").args(["-s", "-1", "-B", ip]).stdout(Stdio::null()).spawn()?;
    let measured = eventually(PATIENCE, &format!("iperf3 connects to {ip}"), || {
        let output = from().args(["-c", ip, "-t1", "-J"]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        bits.with_context(|| format!("iperf3: {:?}", report.get("error")))
    });
    let _ended = server.kill();
    server.wait()?;
    let bits = measured?;
    ensure!(bits > 0.0, "nothing arrived at {ip}");
    // whole megabits of a positive number
    Ok((bits / 1e6) as u64)
}

fn agent_killed(lab: &Lab, pods: &[Pod]) -> Result<()> {
    let mut prober = lab.prober(&pods.iter().collect::<Vec<_>>())?;
    prober.await_flow(PATIENCE)?;
    let node = lab.node(1)?;
    node.kill_agent()?;
    prober.await_packets(200, PATIENCE)?;
    node.start_agent(&[])?;
    await_peers(node, lab.nodes().len() - 1)?;
    prober.await_packets(100, PATIENCE)?;
    let pairs = prober.stop()?;
    let sent: u64 = pairs.iter().map(|p| p.sent).sum();
    let lost: u64 = pairs.iter().map(|p| p.lost).sum();
    println!(
        "   {} pairs, {sent} packets sent while it was dead and started again, {lost} lost",
        pairs.len()
    );
    ensure!(lost == 0, "{lost} packets were lost");
    Ok(())
}

fn readdressed(lab: &Lab, pods: &[Pod]) -> Result<()> {
    let before = lab.node(2)?.addresses();
    lab.readdress(2, 99)?;
    let after = lab.node(2)?.addresses();
    println!("   n2 was {before:?}, is {after:?}");
    let (Some(from), Some(to)) = (pods.first(), pods.get(1)) else { return Ok(()) };
    for ip in to.ips() {
        eventually(PATIENCE, &format!("{from} reaches {ip} again"), || from.ping(*ip))?;
        println!("   {from} reaches {to} at {ip} again");
    }
    Ok(())
}

fn node_removed(lab: &Lab) -> Result<()> {
    let gone = lab.node(3)?;
    gone.kill_agent()?;
    lab.api().delete_node(gone.name())?;
    for node in lab.nodes().iter().filter(|n| n.name() != gone.name()) {
        await_peers(node, lab.nodes().len() - 2)?;
        let peers = node.exec("wg", ["show", "wgo0", "peers"])?.lines().count();
        ensure!(peers == lab.nodes().len() - 2, "wg still shows {peers} peers on {}", node.name());
        println!("   {}: its peer is gone, {peers} left", node.name());
    }
    Ok(())
}

fn await_peers(node: &Node, peers: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{} converges with {peers} peers", node.name()), || {
        let output = status(node, &["--output", "json"])?;
        let status: Value =
            serde_json::from_str(&output).with_context(|| format!("status printed {output}"))?;
        let found = status.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let programmed =
            found.iter().filter(|p| p.get("publicKey").is_some_and(|key| !key.is_null())).count();
        let ready = status.get("ready").and_then(Value::as_bool) == Some(true);
        ensure!(
            programmed == peers && ready,
            "{programmed} peers, ready {ready}: {:?}",
            status.get("problems")
        );
        Ok(())
    })
}

fn status_text(node: &Node) -> Result<String> {
    status(node, &[])
}

/// `status` exits 1 while something is degraded, and prints all the same.
fn status(node: &Node, flags: &[&str]) -> Result<String> {
    let mut command = node.namespace().command(product("wg-overlay")?);
    let output = command.arg("status").args(flags).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn step(number: usize, what: &str) {
    println!("\n{number}/{STEPS} {what}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}
