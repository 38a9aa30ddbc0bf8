//! An agent that finds 5,000 Nodes joined already: its memory, its resync, its rest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::lab::{Lab, eventually_every};

use super::Agent;
use crate::floor::{Netlink, uapi};
use crate::process::inside;
use crate::report::Findings;
use crate::strace::Trace;
use crate::watched::all_cpu_of;
use crate::{Options, each_round};

const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the agent's metrics, which take its time from the rounds: two rounds and more.
const SCRAPE: Duration = Duration::from_millis(2500);
/// Two resyncs of the default interval.
const IDLE: Duration = Duration::from_secs(120);

/// Measures memory, resync and rest; `peak` is the memory of the agent that joined.
pub fn measure(lab: &Lab, peak: f64, options: &Options, findings: &mut Findings) -> Result<()> {
    let agent = Agent::start(lab, "60s")?;
    agent.at_rest()?;
    findings.single("agent-rss", agent.memory("VmRSS")?);
    findings.single("agent-rss-peak", agent.memory("VmHWM")?.max(peak));
    idle(&agent, findings)?;
    drop(agent);
    let agent = Agent::start(lab, "1s")?;
    let [ours, dump] = each_round(options.rounds, [true, false], |is_ours, took: &mut Vec<f64>| {
        took.push(if is_ours { resync(&agent)? } else { dump(&agent)? });
        Ok(())
    })?;
    findings.paired("resync", &ours, "kernel dump alone", &dump)?;
    let trace = Trace::start(agent.pid(), lab.folder())?;
    resync(&agent)?;
    resync(&agent)?;
    findings.single("resync-writes", trace.stop()?.writes() as f64);
    Ok(())
}

fn idle(agent: &Agent<'_>, findings: &mut Findings) -> Result<()> {
    let (before, began) = (agent.at_rest()?, Instant::now());
    // The time itself is what is measured.
    std::thread::sleep(IDLE);
    let used = all_cpu_of(agent.pid())? - before;
    findings.single("agent-idle", used / began.elapsed().as_secs_f64() * 100.0);
    Ok(())
}

/// The mean of the agent's next rounds, two at least, in milliseconds, by its own clock.
fn resync(agent: &Agent<'_>) -> Result<f64> {
    let (count, sum) = eventually_every(SCRAPE, PATIENCE, "the agent tells its rounds", || rounds(agent))?;
    std::thread::sleep(SCRAPE);
    let (count_after, sum_after) = eventually_every(SCRAPE, PATIENCE, "two resyncs", || {
        let (now, sum) = rounds(agent)?;
        ensure!(now >= count + 2.0, "{count} then {now}");
        Ok((now, sum))
    })?;
    Ok((sum_after - sum) * 1e3 / (count_after - count))
}

/// How many rounds there were, and how many seconds they took.
fn rounds(agent: &Agent<'_>) -> Result<(f64, f64)> {
    let text = agent.metrics()?;
    let of = |field: &str| {
        let series = format!("wg_overlay_reconcile_duration_seconds_{field} ");
        let line = text.lines().find_map(|line| line.strip_prefix(series.as_str()));
        line.with_context(|| format!("no {series}in {text}"))?.trim().parse::<f64>().context(series)
    };
    Ok((of("count")?, of("sum")?))
}

/// Links, addresses, routes by netlink and the peers by UAPI, unread, in milliseconds.
fn dump(agent: &Agent<'_>) -> Result<f64> {
    inside(agent.namespace(), || {
        let mut netlink = Netlink::open()?;
        let began = Instant::now();
        netlink.dump()?;
        uapi("get=1\n\n")?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    })
}
