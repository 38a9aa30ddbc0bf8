//! Counts what every node sends on its underlay link, by class, and keeps each plaintext pod
//! packet as evidence.
//!
//! Two witnesses sit on each port of the switch, on the side where a node's packets come in, so
//! that each packet is counted once: nftables counters, which can't lose a packet, count the
//! classes; tcpdump, whose kernel filter lets only plaintext pass, holds the packets themselves
//! and says how many it lost. A segment that the network card of a real node would cut (GSO)
//! counts as one packet; bytes are exact. Fragments are classified by their first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::leftover::signal;
use super::namespace::Namespace;
use super::{API_PORT, POD_CIDRS, eventually, helper, run};

mod report;

pub use report::{CaptureReport, Count, LinkReport};

/// The sources of the deliberate packets; inside the pod prefixes, of no node.
const CONTROL_SOURCES: [(&str, u8); 2] = [("10.244.255.254", 32), ("fd00:244:0:ff::fe", 128)];
/// The class that must stay at 0: a pod or overlay address outside of the tunnel. A tunnel's
/// packet has node addresses, so any port counts.
const PLAINTEXT: &str = "plaintext";

/// A running capture; ended by `stop`.
pub struct Capture {
    switch: Rc<Namespace>,
    control: Rc<Namespace>,
    table: String,
    folder: PathBuf,
    dumps: Vec<Dump>,
    positive_controls: u64,
    stopped: bool,
}

struct Dump {
    link: String,
    pid: u32,
    packets: PathBuf,
    log: PathBuf,
}

impl Capture {
    pub(super) fn start(
        switch: Rc<Namespace>,
        control: Rc<Namespace>,
        links: &[String],
        tunnel_port: u16,
        folder: &Path,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let table = format!("capture{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = folder.join(&table);
        fs::create_dir(&folder)?;
        let rules = folder.join("rules.nft");
        fs::write(&rules, ruleset(&table, links, tunnel_port))?;
        let dumps = Vec::new();
        let mut capture =
            Self { switch, control, table, folder, dumps, positive_controls: 0, stopped: false };
        for link in links {
            capture.dump(link)?;
        }
        capture.switch.exec("nft", ["-f".as_ref(), rules.as_os_str()])?;
        Ok(capture)
    }

    fn dump(&mut self, link: &str) -> Result<()> {
        let packets = self.folder.join(format!("{link}.pcap"));
        let log = self.folder.join(format!("{link}.log"));
        let [v4, v6] = POD_CIDRS;
        let filter = format!("(ip and net {v4}) or (ip6 and net {v6})");
        let mut command = self.switch.command("tcpdump");
        command.args([
            "-i",
            link,
            "-Q",
            "in",
            "-n",
            "-U",
            "--immediate-mode",
            "-s",
            "128",
            "-Z",
            "root",
            "-w",
        ]);
        let pid = self.switch.spawn(command.arg(&packets).arg(filter), &log)?;
        self.dumps.push(Dump { link: link.to_owned(), pid, packets, log: log.clone() });
        eventually(Duration::from_secs(10), &format!("tcpdump listens on {link}"), || {
            let said = fs::read_to_string(&log)?;
            ensure!(said.contains("listening on"), "tcpdump: {}", said.trim());
            Ok(())
        })
    }

    /// Sends one deliberate plaintext packet with a pod's source in each family and waits until
    /// both witnesses have counted it. The report does not count them as a fault.
    ///
    /// # Errors
    /// A witness missed them: what it reports of others is worth nothing.
    pub fn positive_control(&mut self) -> Result<()> {
        let (counted, seen) = (self.counted("control")?, self.seen("control")?);
        let index = self.control.exec("cat", ["/sys/class/net/eth0/ifindex"])?;
        let targets = ["224.0.0.251:9".to_owned(), format!("[ff02::fb%{}]:9", index.trim())];
        for ((source, length), target) in CONTROL_SOURCES.into_iter().zip(targets) {
            let address = format!("{source}/{length}");
            self.control.exec("ip", ["addr", "add", &address, "dev", "eth0", "nodad"])?;
            let sent = run(self
                .control
                .command(helper("prober")?)
                .args(["once", "--from", source, "--to", &target]));
            self.control.exec("ip", ["addr", "del", &address, "dev", "eth0"])?;
            sent.context("send a deliberate plaintext packet")?;
        }
        eventually(Duration::from_secs(5), "the deliberate packets are counted by both witnesses", || {
            let (now, dumped) = (self.counted("control")? - counted, self.seen("control")? - seen);
            ensure!((now, dumped) == (2, 2), "of 2 sent, nftables counted {now} and tcpdump {dumped}");
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
        let mut classes = self.classes()?;
        let mut links = Vec::new();
        for dump in &self.dumps {
            let lines = read_packets(&dump.packets)?;
            let said = fs::read_to_string(&dump.log).unwrap_or_default();
            links.push(LinkReport {
                link: dump.link.clone(),
                classes: classes.remove(&dump.link).unwrap_or_default(),
                seen: u64::try_from(lines.len())?,
                dropped: losses(&said),
                samples: lines.into_iter().take(5).collect(),
            });
        }
        Ok(CaptureReport { links, positive_controls: self.positive_controls })
    }

    /// Ends the capture and gives its report.
    ///
    /// # Errors
    /// A tcpdump did not say what it lost.
    pub fn stop(mut self) -> Result<CaptureReport> {
        self.end();
        for dump in &self.dumps {
            let said = fs::read_to_string(&dump.log)?;
            ensure!(said.contains("dropped by kernel"), "tcpdump on {}: {}", dump.link, said.trim());
        }
        self.report()
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            for dump in &self.dumps {
                signal(dump.pid, Signal::INT);
                let _status = self.switch.wait(dump.pid);
            }
        }
    }

    fn counted(&self, link: &str) -> Result<u64> {
        let classes = self.classes()?;
        let count = classes.get(link).and_then(|classes| classes.get(PLAINTEXT));
        Ok(count.with_context(|| format!("no counters on {link}"))?.packets)
    }

    fn seen(&self, link: &str) -> Result<u64> {
        let dump = self.dumps.iter().find(|dump| dump.link == link);
        let dump = dump.with_context(|| format!("no capture on {link}"))?;
        Ok(u64::try_from(read_packets(&dump.packets)?.len())?)
    }

    /// The counters by link and class.
    fn classes(&self) -> Result<BTreeMap<String, BTreeMap<String, Count>>> {
        let text = self.switch.exec("nft", ["-j", "list", "table", "netdev", &self.table])?;
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
        let _table = self.switch.exec("nft", ["delete", "table", "netdev", &self.table]);
    }
}

/// One chain a link; the first rule that matches counts.
fn ruleset(table: &str, links: &[String], tunnel_port: u16) -> String {
    let [v4, v6] = POD_CIDRS;
    let classes = [
        (format!("ip saddr {v4}"), PLAINTEXT),
        (format!("ip daddr {v4}"), PLAINTEXT),
        (format!("ip6 saddr {v6}"), PLAINTEXT),
        (format!("ip6 daddr {v6}"), PLAINTEXT),
        (format!("udp sport {tunnel_port}"), "wireguard"),
        (format!("udp dport {tunnel_port}"), "wireguard"),
        (format!("tcp sport {API_PORT}"), "control"),
        (format!("tcp dport {API_PORT}"), "control"),
        ("meta protocol arp".to_owned(), "neighbour"),
        // Multicast listener (130-132, 143), router and neighbour discovery (133-137).
        ("icmpv6 type { 130-137, 143 }".to_owned(), "neighbour"),
        (String::new(), "other"),
    ];
    let mut text = format!("table netdev {table} {{\n");
    for link in links {
        text.push_str(&format!(
            "chain {link} {{ type filter hook ingress device \"{link}\" priority -500; policy accept;\n"
        ));
        for (matches, class) in &classes {
            text.push_str(&format!("{matches} counter accept comment \"{class}\"\n"));
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}

fn read_packets(file: &Path) -> Result<Vec<String>> {
    let mut command = std::process::Command::new("tcpdump");
    let text = run(command.args(["-n", "-tttt", "-Z", "root", "-r"]).arg(file))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn losses(said: &str) -> u64 {
    let lines = said.lines().filter(|line| line.contains("dropped by"));
    lines.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum()
}
