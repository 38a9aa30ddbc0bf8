//! Handshakes that are refused, since a clock went back, and handshakes that nobody answers, since an address is a third
//! party's.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, Pod, eventually, helper, run};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, status, with_agents, with_config};
use crate::guards::counted;
use crate::look::{ENDPOINT, await_rounds, create_node, ensure_lossless, key_of, made_up, metric, probing};
use crate::witness::Machine as _;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_node_whose_clock_went_back_is_let_in_again", &["ping", "bash"], clock),
        Case::new("an_address_that_does_not_answer_is_not_flooded", &["ping", "bash"], third_party),
    ]
}

const RENEWED: &str = "wg_overlay_kernel_changes_total{object=\"peer\",operation=\"renew\"}";
const COUNTER: &str = "handshakes_over_limit";

/// n2 and n3 take a handshake of n1's key that is a day ahead, so that n1's own are of the day before, as if its clock had
/// gone back. n2's agent runs, n3's does not: that is the control.
fn clock() -> Result<()> {
    let mut config = LabConfig { nodes: 3, ..LabConfig::default() };
    config.agent.insert("resyncInterval".into(), json!("1s"));
    with_config(config, |lab| {
        let all = pods(lab)?;
        let [n1, healing, bare] = [lab.node(1)?, lab.node(2)?, lab.node(3)?];
        let [from, to_healing, to_bare] = all.as_slice() else { anyhow::bail!("{} pods", all.len()) };
        let mut live = probing(lab, &[to_healing, to_bare])?;
        for node in [healing, bare] {
            day_ahead(lab, n1, node)?;
        }
        bare.stop_agent()?;
        // What anybody can send: from the address of a node that lives, and from one that nobody answers at.
        create_node(lab, &made_up("silent", 91))?;
        await_peers(healing, 3)?;
        lab.control().exec("ip", ["addr", "add", "172.30.0.91/32", "dev", "eth0"])?;
        noise(lab.control(), "172.30.0.91", healing)?;

        ensure!(from.ping(to_healing.ipv4()?).is_err(), "nothing is refused, so this shows nothing");
        // A minute on kernel WireGuard; the user-space device takes what was not confirmed for a session, too: 180 s.
        eventually(5 * PATIENCE, "n2 lets n1 in again", || {
            noise(bare, "172.30.0.13", healing)?;
            ensure!(from.ping(to_bare.ipv4()?).is_err(), "n3 has let it in by itself");
            from.ping(to_healing.ipv4()?)
        })?;
        eventually(PATIENCE, "the silent peer begins anew too", || {
            let renewed = metric(healing, RENEWED)?;
            ensure!(renewed == 2.0, "{renewed} begun");
            Ok(())
        })?;
        for _ in 0..3 {
            await_rounds(healing)?;
        }
        let log = healing.agent_log();
        ensure!(metric(healing, RENEWED)? == 2.0, "one has begun twice:\n{log}");
        for (name, renewed) in [("n1", true), ("silent", true), ("n3", false)] {
            ensure!(log.contains(&format!("renew peer {name} ")) == renewed, "{name}:\n{log}");
        }
        ensure_lossless(&mut live, "a peer that lives was touched")?;
        ensure!(from.ping(to_bare.ipv4()?).is_err(), "n3 has let it in by itself");
        bare.start_agent(&[])?;
        eventually(PATIENCE, "n3 lets n1 in again", || from.ping(to_bare.ipv4()?))
    })
}

fn day_ahead(lab: &Lab, whose: &Node, to: &Node) -> Result<()> {
    let mut command = whose.namespace().command(helper("prober")?);
    command.args(["initiate", "--key", "/var/lib/wg-overlay/private-key", "--ahead", "86400"]);
    let endpoint = format!("172.30.0.1{}:51820", to.number());
    run(command.args(["--peer", &key_of(lab, to.name())?, "--to", &endpoint])).map(drop)
}

/// Something like a handshake initiation.
fn noise(machine: &impl crate::witness::Machine, source: &str, to: &Node) -> Result<()> {
    let program = helper("prober")?.display().to_string();
    let to = format!("172.30.0.1{}:51820", to.number());
    machine.run(&program, &["once", "--initiation", "--from", source, "--to", &to]).map(drop)
}

/// Nodes that only the API knows, all with one address.
const CLAIMS: std::ops::Range<u8> = 100..120;
const THIRD: &str = "172.30.0.99";

fn third_party() -> Result<()> {
    with_agents(2, |lab| {
        let (sender, down) = (lab.node(1)?, lab.node(2)?);
        let (from, to) = (sender.add_pod("p")?, down.add_pod("p")?);
        lab.control().exec("ip", ["addr", "add", &format!("{THIRD}/32"), "dev", "eth0"])?;
        lab.control().nft(&format!(
            "table inet third {{
                counter got {{ }}
                chain input {{ type filter hook input priority 0; policy accept;
                    ip saddr 172.30.0.11 ip daddr {THIRD} @th,64,32 0x01000000 counter name got
                }}
            }}"
        ))?;
        // n2 sends as many: the bound is a node's.
        let start = Instant::now();
        claim(lab, THIRD)?;
        await_peers(sender, 1 + CLAIMS.len())?;
        send_until(&from, "the third party is spared", || {
            let over = counted(sender, COUNTER)?;
            ensure!(over >= 40, "{over} initiations were held back");
            Ok(())
        })?;
        let got = arrived(lab)?;
        let bound = 18 + start.elapsed().as_secs() / 15 + 1;
        ensure!((18..=bound).contains(&got), "{got} have arrived, of {bound} at most");
        let told = status(sender)?["guard"]["drops"][COUNTER].as_u64();
        ensure!(told >= Some(40), "status tells of {told:?}");
        let series = format!("wg_overlay_dropped_packets_total{{reason=\"{COUNTER}\"}}");
        ensure!(metric(sender, &series)? >= 40.0, "the metrics don't tell");

        // The control: without the rule it gets them all.
        sender.stop_agent()?;
        sender.exec("nft", ["flush chain inet wg-overlay tunnel_out"])?;
        let before = arrived(lab)?;
        send_until(&from, "without the rule the third party is flooded", || {
            let more = arrived(lab)? - before;
            ensure!(more >= 40, "{more} have arrived");
            Ok(())
        })?;
        sender.start_agent(&[])?;
        await_peers(sender, 1 + CLAIMS.len())?;

        // An address that was down: others have used up what it gets, and then it is back.
        down.nft("table inet gone { chain in { type filter hook prerouting priority -400; udp dport 51820 drop; }; }")?;
        claim(lab, "172.30.0.12")?;
        let before = counted(sender, COUNTER)?;
        send_until(&from, "the node that is down gets no more either", || {
            ensure!(from.ping(to.ipv4()?).is_err(), "it is not down");
            let over = counted(sender, COUNTER)? - before;
            ensure!(over >= 40, "{over} initiations were held back");
            Ok(())
        })?;
        for n in CLAIMS {
            lab.api().delete_node(&format!("claim-{n}"))?;
        }
        await_peers(sender, 1)?;
        down.exec("nft", ["delete table inet gone"])?;
        eventually(PATIENCE, "the node that was down is reached again", || from.ping(to.ipv4()?))
    })
}

/// Has every made-up Node say that it lives there.
fn claim(lab: &Lab, address: &str) -> Result<()> {
    for n in CLAIMS {
        let name = format!("claim-{n}");
        if lab.api().node(&name).is_err() {
            create_node(lab, &made_up(&name, n))?;
        }
        lab.api().annotate(&name, &json!({ (ENDPOINT): format!("{address}:{}", 40_000 + u32::from(n)) }))?;
    }
    Ok(())
}

/// Sends to a pod of each made-up Node, again and again.
fn send_until(from: &Pod, what: &str, check: impl Fn() -> Result<()>) -> Result<()> {
    let sends = CLAIMS.map(|n| format!("echo > /dev/udp/10.244.{n}.9/9;")).collect::<String>();
    eventually(PATIENCE, what, || {
        from.exec("bash", ["-c", &sends])?;
        check()
    })
}

fn arrived(lab: &Lab) -> Result<u64> {
    let text = lab.control().exec("nft", ["list", "counter", "inet", "third", "got"])?;
    let number = text.split_once("packets ").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(number.unwrap_or_default().parse()?)
}
