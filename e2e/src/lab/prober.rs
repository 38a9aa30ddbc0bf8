//! Counts lost packets between pods: every pod sends numbered UDP packets to every other, which
//! sends them back.
//!
//! The packets are sent by the helper program `prober`, one process a pod, in the pod's namespace. A pair of namespaces
//! with nothing but a cable between them serves as its control.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::eventually;
use super::sites::Site;

/// What became of the packets from one pod to another address and back.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairReport {
    /// NODE/POD; empty in the helper's own answer.
    #[serde(default)]
    pub from: String,
    /// NODE/POD of the target.
    #[serde(default)]
    pub to: String,
    /// The target's address.
    pub target: IpAddr,
    /// Packets sent.
    pub sent: u64,
    /// Answers within the prober's patience.
    pub received: u64,
    /// Sent longer ago than the prober's patience and not answered, or refused by the kernel.
    pub lost: u64,
    /// The most packets lost one after another.
    pub longest_run: u64,
    /// The last error of the kernel.
    pub error: Option<String>,
}

impl fmt::Display for PairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, target, sent, received, lost, longest_run, error } = self;
        write!(
            f,
            "{from} to {to} ({target}): of {sent} packets {received} answered in time, {lost} lost, at most \
             {longest_run} in a row"
        )?;
        error.as_ref().map_or(Ok(()), |error| write!(f, "; last error: {error}"))
    }
}

impl PairReport {
    /// A line for each pair that lost packets.
    pub fn losses(pairs: &[Self]) -> Vec<String> {
        pairs.iter().filter(|pair| pair.lost > 0).map(Self::to_string).collect()
    }
}

/// How often a prober sends to each target, and how long an answer may take before it counts as lost.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two packets.
    pub interval: Duration,
    /// Until an answer is too late.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { interval: Duration::from_millis(10), patience: Duration::from_secs(1) }
    }
}

/// A running prober. Its drop ends it.
pub struct Prober {
    probes: Vec<Probe>,
    names: BTreeMap<IpAddr, String>,
}

struct Probe {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Prober {
    pub(super) fn start(sites: Vec<Site>, pace: Pace, folder: &Path) -> Result<Self> {
        let all: Vec<(String, Vec<IpAddr>)> =
            sites.iter().map(|site| (site.name.clone(), site.ips.clone())).collect();
        let names = all.iter().flat_map(|(name, ips)| ips.iter().map(|ip| (*ip, name.clone()))).collect();
        let mut prober = Self { probes: Vec::new(), names };
        for Site { name, ips, mut command } in sites {
            let others = all.iter().filter(|(_, other)| *other != ips).flat_map(|(_, other)| other);
            let targets = others.filter(|target| ips.iter().any(|own| own.is_ipv4() == target.is_ipv4()));
            command.args(["run", "--interval", &pace.interval.as_millis().to_string()]);
            command.args(["--patience", &pace.patience.as_millis().to_string()]);
            command.args(targets.map(IpAddr::to_string));
            let log = folder.join(format!("logs/{}-prober.log", name.replace('/', "-")));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(log)?);
            let mut child = command.spawn().with_context(|| format!("start the prober in {name}"))?;
            let answers = BufReader::new(child.stdout.take().context("no output")?);
            let orders = child.stdin.take();
            prober.probes.push(Probe { name, child, orders, answers });
        }
        Ok(prober)
    }

    /// Waits until every pair has had an answer, and counts from then on.
    ///
    /// # Errors
    /// A pair has none within the timeout: the error names it.
    pub fn await_flow(&mut self, timeout: Duration) -> Result<()> {
        eventually(timeout, "packets flow between all pairs of pods", || {
            for pair in self.report()? {
                ensure!(pair.received > 0, "{} to {} ({}): nothing back", pair.from, pair.to, pair.target);
            }
            Ok(())
        })?;
        self.reset()
    }

    /// Counts from now on.
    ///
    /// # Errors
    /// A prober has ended.
    pub fn reset(&mut self) -> Result<()> {
        self.probes.iter_mut().try_for_each(|probe| probe.order("reset").map(drop))
    }

    /// What became of every pair's packets so far.
    ///
    /// # Errors
    /// A prober has ended.
    pub fn report(&mut self) -> Result<Vec<PairReport>> {
        let mut all = Vec::new();
        for probe in &mut self.probes {
            let mut pairs = probe.order("report")?;
            for pair in &mut pairs {
                pair.from.clone_from(&probe.name);
                pair.to = self.names.get(&pair.target).cloned().unwrap_or_default();
            }
            all.append(&mut pairs);
        }
        Ok(all)
    }

    /// Waits until every pair has sent so many packets more and they are answered or lost.
    ///
    /// # Errors
    /// That takes longer than the timeout.
    pub fn await_packets(&mut self, packets: u64, timeout: Duration) -> Result<()> {
        let done = |pair: &PairReport| pair.received + pair.lost;
        let key = |pair: &PairReport| (pair.from.clone(), pair.target);
        let before: BTreeMap<_, _> = self.report()?.iter().map(|pair| (key(pair), done(pair))).collect();
        eventually(timeout, &format!("{packets} more packets between all pairs"), || {
            for pair in self.report()? {
                let more = done(&pair).saturating_sub(before.get(&key(&pair)).copied().unwrap_or_default());
                ensure!(more >= packets, "{} to {}: {more}", pair.from, pair.to);
            }
            Ok(())
        })
    }

    /// Stops sending, waits for the answers under way, and gives the last report.
    ///
    /// # Errors
    /// A prober had ended.
    pub fn stop(mut self) -> Result<Vec<PairReport>> {
        self.probes.iter_mut().try_for_each(|probe| probe.order("stop").map(drop))?;
        self.report()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        for probe in &mut self.probes {
            drop(probe.orders.take());
            let _ended = probe.child.kill();
            let _reaped = probe.child.wait();
        }
    }
}

impl Probe {
    fn order(&mut self, order: &str) -> Result<Vec<PairReport>> {
        let gone = || format!("the prober of {} has ended: see its log", self.name);
        let orders = self.orders.as_mut().with_context(gone)?;
        writeln!(orders, "{order}").with_context(gone)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).with_context(gone)?;
        serde_json::from_str(&line).with_context(gone)
    }
}
