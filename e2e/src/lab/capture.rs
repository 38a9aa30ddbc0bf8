//! Counts what every machine sends on its underlay link, by class, and keeps each plaintext pod
//! packet as evidence.
//!
//! Two witnesses sit on the switch, where packets come in from its ports, so that each packet is
//! counted once: nftables counters, which can't lose a packet, count the classes; tcpdump, whose
//! kernel filter lets only plaintext pass, holds the packets themselves and says how many it lost.
//! Both outlive a port that goes away and comes back. A segment that the network card of a real node
//! would cut (GSO) counts as one packet; bytes are exact. Fragments are classified by their first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::leftover::signal;
use super::namespace::Network;
use super::{API_PORT, POD_CIDRS, eventually, helper, run};

mod report;

pub use report::{CaptureReport, Count, LinkReport};

/// The sources of the deliberate packets; inside the pod prefixes, of no node.
const CONTROL_SOURCES: [(&str, u8); 2] = [("10.244.255.254", 32), ("fd00:244:0:ff::fe", 128)];
/// The class that must stay at 0: a pod or overlay address outside of the tunnel. A tunnel's
/// packet has node addresses, so any port counts.
const PLAINTEXT: &str = "plaintext";
/// Ports that came after the start.
const LATER: &str = "later";

/// Where a capture sits.
pub struct CaptureConfig {
    /// The namespace of the bridge `br0` that joins the underlay.
    pub switch: Network,
    /// A machine on the switch that holds nothing back: it sends the deliberate packets.
    pub control: Network,
    /// Its link to the switch, which IPv4 multicast leaves by.
    pub control_device: String,
    /// The switch's port of that machine.
    pub control_link: String,
    /// The switch's ports; those that come later are counted together.
    pub links: Vec<String>,
    /// The tunnel's port, by which WireGuard is known.
    pub tunnel_port: u16,
}

/// A running capture; ended by `stop`.
pub struct Capture {
    config: CaptureConfig,
    table: String,
    folder: PathBuf,
    dump: Child,
    positive_controls: u64,
    stopped: bool,
}

impl Capture {
    /// Starts to count; what it writes goes to a folder of its own in `folder`.
    ///
    /// # Errors
    /// nft or tcpdump fails.
    pub fn start(config: CaptureConfig, folder: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let table = format!("capture{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = folder.join(&table);
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let rules = folder.join("rules.nft");
        fs::write(&rules, ruleset(&table, &config.links, config.tunnel_port))?;
        let dump = dump(&config.switch, &folder)?;
        let capture = Self { config, table, folder, dump, positive_controls: 0, stopped: false };
        capture.config.switch.exec("nft", ["-f".as_ref(), rules.as_os_str()])?;
        let log = capture.folder.join("tcpdump.log");
        eventually(Duration::from_secs(10), "tcpdump listens on the switch", || {
            let said = fs::read_to_string(&log)?;
            ensure!(said.contains("listening on"), "tcpdump: {}", said.trim());
            Ok(())
        })?;
        Ok(capture)
    }

    /// Sends one deliberate plaintext packet with a pod's source in each family and waits until
    /// both witnesses have counted it. The report does not count them as a fault.
    ///
    /// # Errors
    /// A witness missed them: what it reports of others is worth nothing.
    pub fn positive_control(&mut self) -> Result<()> {
        let (counted, seen) = (self.counted()?, self.seen()?.len());
        let control = &self.config.control;
        let device = self.config.control_device.as_str();
        let link: Value = serde_json::from_str(&control.exec("ip", ["-j", "link", "show", "dev", device])?)?;
        let index = link.pointer("/0/ifindex").and_then(Value::as_u64).context("the link has no index")?;
        let targets = ["224.0.0.251:9".to_owned(), format!("[ff02::fb%{index}]:9")];
        for ((source, length), target) in CONTROL_SOURCES.into_iter().zip(targets) {
            let address = format!("{source}/{length}");
            control.exec("ip", ["addr", "add", &address, "dev", device, "nodad"])?;
            let sent =
                run(control.command(helper("prober")?).args(["once", "--from", source, "--to", &target]));
            control.exec("ip", ["addr", "del", &address, "dev", device])?;
            sent.context("send a deliberate plaintext packet")?;
        }
        eventually(Duration::from_secs(5), "the deliberate packets are counted by both witnesses", || {
            let (now, dumped) = (self.counted()? - counted, self.seen()?.len() - seen);
            ensure!(now >= 2 && dumped >= 2, "of 2 sent, nftables counted {now} and tcpdump {dumped}");
            Ok(())
        })?;
        self.positive_controls += 2;
        Ok(())
    }

    /// What was counted so far; tcpdump's losses are known only at the end.
    ///
    /// # Errors
    /// nft or tcpdump fails.
    pub fn report(&self) -> Result<CaptureReport> {
        let links = self.classes()?.into_iter().map(|(link, classes)| LinkReport { link, classes });
        let packets = self.seen()?;
        Ok(CaptureReport {
            links: links.collect(),
            seen: u64::try_from(packets.len())?,
            dropped: losses(&self.said()),
            samples: packets.into_iter().take(20).collect(),
            positive_controls: self.positive_controls,
        })
    }

    /// Ends the capture and gives its report.
    ///
    /// # Errors
    /// tcpdump did not say what it lost.
    pub fn stop(mut self) -> Result<CaptureReport> {
        self.end();
        let said = self.said();
        ensure!(said.contains("dropped by kernel"), "tcpdump ended early: {}", said.trim());
        self.report()
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            signal(self.dump.id(), Signal::INT);
            let _status = self.dump.wait();
        }
    }

    fn counted(&self) -> Result<u64> {
        let (classes, link) = (self.classes()?, &self.config.control_link);
        let count = classes.get(link).and_then(|classes| classes.get(PLAINTEXT));
        Ok(count.with_context(|| format!("no counters on {link}"))?.packets)
    }

    fn seen(&self) -> Result<Vec<String>> {
        let mut command = std::process::Command::new("tcpdump");
        let file = self.folder.join("packets.pcap");
        let text = run(command.args(["-n", "-e", "-tttt", "-Z", "root", "-r"]).arg(file))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("tcpdump.log")).unwrap_or_default()
    }

    /// The counters by link and class.
    fn classes(&self) -> Result<BTreeMap<String, BTreeMap<String, Count>>> {
        let text = self.config.switch.exec("nft", ["-j", "list", "table", "bridge", &self.table])?;
        let listing: Value = serde_json::from_str(&text).context("parse nft's JSON")?;
        let mut links: BTreeMap<String, BTreeMap<String, Count>> = BTreeMap::new();
        let items = listing.get("nftables").and_then(Value::as_array).context("nft's JSON has no list")?;
        for rule in items.iter().filter_map(|item| item.get("rule")) {
            let text = |field| rule.get(field).and_then(Value::as_str).map(str::to_owned);
            let counter = rule
                .get("expr")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .find_map(|e| e.get("counter"));
            if let (Some(link), Some(class), Some(counter)) = (text("chain"), text("comment"), counter) {
                let number = |field| counter.get(field).and_then(Value::as_u64).unwrap_or_default();
                let count = links.entry(link).or_default().entry(class).or_default();
                count.packets += number("packets");
                count.bytes += number("bytes");
            }
        }
        Ok(links)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
        let _table = self.config.switch.exec("nft", ["delete", "table", "bridge", &self.table]);
    }
}

fn dump(switch: &Network, folder: &Path) -> Result<Child> {
    let [v4, v6] = POD_CIDRS;
    let log = File::create(folder.join("tcpdump.log"))?;
    // A bridge in promiscuous mode hands up every frame that it forwards, once.
    let mut command = switch.command("tcpdump");
    command.args(["-i", "br0", "-Q", "in", "-n", "-U", "--immediate-mode", "-s", "128", "-Z", "root", "-w"]);
    command.arg(folder.join("packets.pcap"));
    command.arg(format!("(ip and net {v4}) or (ip6 and net {v6})"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start tcpdump")
}

/// One chain a link; the first rule that matches counts.
fn ruleset(table: &str, links: &[String], tunnel_port: u16) -> String {
    let [v4, v6] = POD_CIDRS;
    let classes = [
        (format!("ip saddr {v4}"), PLAINTEXT),
        (format!("ip daddr {v4}"), PLAINTEXT),
        (format!("ip6 saddr {v6}"), PLAINTEXT),
        (format!("ip6 daddr {v6}"), PLAINTEXT),
        // and the second device's
        (format!("udp sport {tunnel_port}-{}", tunnel_port + 1), "wireguard"),
        (format!("udp dport {tunnel_port}-{}", tunnel_port + 1), "wireguard"),
        (format!("tcp sport {API_PORT}"), "control"),
        (format!("tcp dport {API_PORT}"), "control"),
        ("meta protocol arp".to_owned(), "neighbour"),
        // Multicast listener (130-132, 143), router and neighbour discovery (133-137).
        ("icmpv6 type { 130-137, 143 }".to_owned(), "neighbour"),
        (String::new(), "other"),
    ];
    let mut text = format!("table bridge {table} {{\n");
    for link in links.iter().map(String::as_str).chain([LATER]) {
        text.push_str(&format!("chain {link} {{\n"));
        for (matches, class) in &classes {
            text.push_str(&format!("{matches} counter accept comment \"{class}\"\n"));
        }
        text.push_str("}\n");
    }
    text.push_str("chain ports { type filter hook prerouting priority -500; policy accept;\n");
    for link in links {
        text.push_str(&format!("iifname \"{link}\" jump {link}\n"));
    }
    text.push_str(&format!("jump {LATER}\n}}\n}}\n"));
    text
}

fn losses(said: &str) -> u64 {
    let lines = said.lines().filter(|line| line.contains("dropped by"));
    lines.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum()
}
