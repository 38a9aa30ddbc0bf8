//! User-space tunnels: TCP by one and four streams, UDP in packets of a small payload, processor time and memory.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::engines::{Engine, Engines, Kind};
use crate::report::{Figures, Findings};
use crate::stats::{lower_bound, median, paired_ratios};
use crate::{Options, each_round_of};

/// Seconds of one transfer.
const SECONDS: f64 = 3.0;

/// What one engine gave, round by round.
#[derive(Default)]
struct Series {
    tcp1: Vec<f64>,
    tcp4: Vec<f64>,
    udp: Vec<f64>,
    /// Gbit for each second of both ends' processor time.
    per_cpu: Vec<f64>,
}

/// A column of all engines' series.
type Column = fn(&Series) -> &[f64];

/// Measures the rows of `Group::Tunnel`; the smoke run the first alone.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let kinds: &[Kind] = if options.smoke { &[Kind::Ours, Kind::WireguardGo] } else { &Kind::ALL };
    let engines = Engines::start(kinds)?;
    let data = each_round_of(options.rounds, &engines.all, |engine, series: &mut Series| {
        tcp(&engines, &engine, series)?;
        if !options.smoke {
            series.tcp4.push(bits(&engines.iperf3(&engine, &["-t", &seconds(), "-P", "4"])?)? / SECONDS);
            series.udp.push(packets(
                &engines.iperf3(&engine, &["-t", &seconds(), "-u", "-b", "0", "-l", "1200"])?,
            )?);
        }
        Ok(())
    })?;
    let table: Vec<(Kind, &Series)> = engines.all.iter().map(|engine| engine.kind).zip(&data).collect();
    compare(findings, "tcp-1", &table, |series| &series.tcp1, Some(Kind::WireguardGo))?;
    if options.smoke {
        return Ok(());
    }
    compare(findings, "tcp-4", &table, |series| &series.tcp4, None)?;
    compare(findings, "udp", &table, |series| &series.udp, None)?;
    compare(findings, "tcp-1-cpu", &table, |series| &series.per_cpu, None)?;
    memory(&engines, findings)
}

fn tcp(engines: &Engines, engine: &Engine, series: &mut Series) -> Result<()> {
    let before = engine.cpu()?;
    let gbits = bits(&engines.iperf3(engine, &["-t", &seconds()])?)?;
    let used = engine.cpu()? - before;
    series.tcp1.push(gbits / SECONDS);
    if used > 0.0 {
        series.per_cpu.push(gbits / used);
    }
    Ok(())
}

/// Puts a row: ours beside one peer, or beside the best one, with the others told.
fn compare(
    findings: &mut Findings,
    row: &'static str,
    table: &[(Kind, &Series)],
    column: Column,
    with: Option<Kind>,
) -> Result<()> {
    let middle = |series: &Series| median(column(series)).unwrap_or_default();
    let peers = table.iter().filter(|(kind, _)| kind.is_peer());
    let best = peers.max_by(|a, b| middle(a.1).total_cmp(&middle(b.1))).map(|(kind, _)| *kind);
    let with = with.or(best).context("no peer was measured")?;
    let of = |wanted: Kind| table.iter().find(|(kind, _)| *kind == wanted).map(|(_, series)| *series);
    let (ours, peer) = (of(Kind::Ours).context("we were not measured")?, of(with).context("no such peer")?);
    let beside = table
        .iter()
        .filter(|(kind, series)| *kind != Kind::Ours && *kind != with && !column(series).is_empty());
    let beside = beside.map(|(kind, series)| (kind.name().to_owned(), middle(series))).collect();
    findings.paired_beside(row, column(ours), with.name(), column(peer), beside)
}

fn memory(engines: &Engines, findings: &mut Findings) -> Result<()> {
    let mut all = engines.all.iter().filter(|engine| engine.kind != Kind::Veth);
    let all: Vec<(Kind, f64)> =
        all.by_ref().map(|engine| Ok((engine.kind, engine.peak_memory()?))).collect::<Result<_>>()?;
    let of = |wanted: Kind| all.iter().find(|(kind, _)| *kind == wanted).map(|(_, memory)| *memory);
    let ours = of(Kind::Ours).context("we were not measured")?;
    let base = of(Kind::WireguardGo).context("wireguard-go was not measured")?;
    let ratios = paired_ratios(&[ours], &[base]);
    let others = all.iter().filter(|(kind, _)| !matches!(kind, Kind::Ours | Kind::WireguardGo));
    findings.put(
        "tunnel-rss",
        Figures {
            ours,
            baseline: Some((Kind::WireguardGo.name().to_owned(), base)),
            ratio: median(&ratios),
            bound: lower_bound(&ratios),
            beside: others.map(|(kind, memory)| (kind.name().to_owned(), *memory)).collect(),
        },
    );
    Ok(())
}

fn seconds() -> String {
    SECONDS.to_string()
}

/// Received, in Gbit.
fn bits(report: &Value) -> Result<f64> {
    let bytes = report.pointer("/end/sum_received/bytes").and_then(Value::as_f64);
    Ok(bytes.context("iperf3 tells no bytes received")? * 8.0 / 1e9)
}

/// Received a second.
fn packets(report: &Value) -> Result<f64> {
    let of = |field: &str| report.pointer(&format!("/end/sum/{field}")).and_then(Value::as_f64);
    let (all, lost, seconds) = (of("packets"), of("lost_packets"), of("seconds"));
    let received = all.zip(lost).zip(seconds).map(|((all, lost), seconds)| (all - lost) / seconds);
    received.context("iperf3 tells no packets received")
}
