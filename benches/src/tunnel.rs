//! User-space tunnels: TCP by one and four streams, UDP in packets of a small payload, processor time and memory.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::engines::{Engine, Engines, Kind, Rival, compare};
use crate::report::Findings;
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
    let by_kind = |column: Column| -> Vec<(Kind, Vec<f64>)> {
        engines.all.iter().zip(&data).map(|(engine, series)| (engine.kind, column(series).to_vec())).collect()
    };
    compare(findings, "tcp-1", &by_kind(|series| &series.tcp1), Rival::Named(Kind::WireguardGo))?;
    if options.smoke {
        return Ok(());
    }
    compare(findings, "tcp-4", &by_kind(|series| &series.tcp4), Rival::Highest)?;
    compare(findings, "udp", &by_kind(|series| &series.udp), Rival::Highest)?;
    compare(findings, "tcp-1-cpu", &by_kind(|series| &series.per_cpu), Rival::Highest)?;
    let tunnels = engines.all.iter().filter(|engine| engine.kind != Kind::Veth);
    let memory: Vec<(Kind, Vec<f64>)> =
        tunnels.map(|engine| Ok((engine.kind, vec![engine.peak_memory()?]))).collect::<Result<_>>()?;
    compare(findings, "tunnel-rss", &memory, Rival::Named(Kind::WireguardGo))
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
