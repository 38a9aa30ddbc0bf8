//! User-space tunnels: the way there and back, idle and while a TCP stream of a set rate passes.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::engines::{Engine, Engines, Kind, Rival, again, compare, told};
use crate::report::Findings;
use crate::stats::quantile;
use crate::{Options, each_round_of};

/// Pings of one figure, 2 ms apart: of the slowest hundredth there are ten.
const PINGS: &str = "1000";
const INTERVAL: &str = "0.002";

/// What one engine gave, round by round, in milliseconds: p50, p99 idle, p50, p99 loaded.
type Series = [Vec<f64>; 4];

/// Measures the rows of `Group::Latency`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let engines = Engines::start(&Kind::ALL)?;
    let rate = half_of_the_slowest(&engines)?;
    let data = each_round_of(options.rounds, &engines.all, |engine, series: &mut Series| {
        let idle = ping(&engines, &engine)?;
        let loaded = again(|| ping_loaded(&engines, &engine, &rate))?;
        for (column, (times, at)) in
            series.iter_mut().zip([(&idle, 0.5), (&idle, 0.99), (&loaded, 0.5), (&loaded, 0.99)])
        {
            column.push(quantile(times, at).context("no ping came back")?);
        }
        Ok(())
    })?;
    for (column, row) in
        ["ping-idle-p50", "ping-idle-p99", "ping-half-p50", "ping-half-p99"].into_iter().enumerate()
    {
        let of = |series: &Series| series.get(column).cloned().unwrap_or_default();
        let table: Vec<(Kind, Vec<f64>)> =
            engines.all.iter().zip(&data).map(|(engine, series)| (engine.kind, of(series))).collect();
        compare(findings, row, &table, Rival::Lowest)?;
    }
    Ok(())
}

/// In bits a second, as iperf3 takes it.
fn half_of_the_slowest(engines: &Engines) -> Result<String> {
    let mut slowest = f64::MAX;
    for engine in engines.all.iter().filter(|engine| engine.kind.is_peer()) {
        let report = engines.iperf3(engine, &["-t", "2"])?;
        let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        slowest = slowest.min(rate.context("iperf3 tells no rate")?);
    }
    Ok(format!("{:.0}", slowest / 2.0))
}

/// The same while a TCP stream of `rate` passes.
fn ping_loaded(engines: &Engines, engine: &Engine, rate: &str) -> Result<Vec<f64>> {
    let mut load = engines.iperf3_command(engine, &["-t", "4", "-b", rate])?;
    let mut load = load.stdout(Stdio::piped()).spawn().context("start iperf3")?;
    let times = ping(engines, engine);
    let ended = load.try_wait()?.is_some();
    told(engine, &String::from_utf8(load.wait_with_output()?.stdout)?)?;
    ensure!(!ended, "the load on {} ended before the pings", engine.kind.name());
    times
}

/// The times of the pings that came back, in milliseconds; none is an error.
fn ping(engines: &Engines, engine: &Engine) -> Result<Vec<f64>> {
    let target = engine.target();
    let said = engines.client()?.exec("ping", ["-n", "-i", INTERVAL, "-c", PINGS, &target])?;
    let times = said.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
    let times: Vec<f64> = times.collect();
    ensure!(!times.is_empty(), "ping {target}: {said}");
    Ok(times)
}
