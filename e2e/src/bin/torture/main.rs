//! `make torture`: seeded faults on real agents in the lab for a bounded time, and a report that counts what was tried and
//! what was lost.
//!
//! A part breaks one kind of thing under traffic. What it can't count it doesn't claim: it plants a loss first and sees it
//! counted, and where a plain cable between two namespaces loses a packet too, its packets are void.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is missing")]

mod api;
mod churn;
mod crowd;
mod flap;
mod kernel;
mod kills;
mod report;
mod rotation;
mod run;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use run::Run;

/// Injects faults into real agents in a lab of namespaces, and counts what was lost.
///
/// Every random choice comes from the seed, which is printed first; each part has choices of its own, so --only repeats
/// those of a whole run. When a choice meets the agents differs from run to run: a seed repeats the faults, not the
/// machine's timing.
#[derive(Parser)]
#[command(after_help = "\
Parts:
  kills     agents killed with -9 at any moment, also in their start and in the midst of plans
  churn     nodes join, leave, rotate their key, change address, PodCIDR, key and name
  kernel    somebody else deletes and changes links, addresses, routes, peers, nftables
  api       the API server is gone, slow, answers 429, 410, 500, half or nothing, and Nodes change meanwhile
  flap      one Node changes ten times a second for 20 s
  rotation  keys change by `wg-overlay rotate-key`, some at once, while agents are killed, stopped and frozen

Examples:
  make torture                                       ten minutes, all parts
  make torture TORTURE=\"--minutes 60 --nodes 50\"     the long form
  torture --only kills --minutes 2 --seed 7          one part, with the choices of seed 7

Needs root, and WG_OVERLAY_BIN_DIR (wg-overlay, wg-overlay-cni) and WG_OVERLAY_E2E_BIN_DIR (machine, node-api, prober).
`make torture` sets both, and TORTURE holds its arguments.

Writes OUT/report.json, a list of {item, tried, lost, unit, seed, holds}; of a part that fails, the lab's logs to OUT/logs.
An item is void, and does not hold, where the control without any of ours between its ends lost packets too.

Exit status: 0 every item holds; 1 one does not, or a part could not run.")]
struct Flags {
    /// How long in all, in minutes; each part ends what it has begun, so it takes a little longer.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Where random choices come from; else the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this part; may be given several times.
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// How many nodes come and go in churn: 4 to 60. More than 30 need a larger neighbour table than Linux's default.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(4..=60))]
    nodes: u8,
    /// Where the report goes.
    #[arg(long, default_value = "target/torture")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Kills,
    Churn,
    Kernel,
    Api,
    Flap,
    Rotation,
}

impl Part {
    /// Its share of the time.
    fn weight(self) -> f64 {
        match self {
            Self::Kills | Self::Api | Self::Rotation => 2.0,
            Self::Churn => 3.0,
            Self::Kernel => 1.5,
            Self::Flap => 1.0,
        }
    }

    fn run(self, run: &mut Run) -> Result<()> {
        match self {
            Self::Kills => kills::run(run),
            Self::Churn => churn::run(run),
            Self::Kernel => kernel::run(run),
            Self::Api => api::run(run),
            Self::Flap => flap::run(run),
            Self::Rotation => rotation::run(run),
        }
    }
}

fn main() -> ExitCode {
    match torture(Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every item holds.
fn torture(flags: Flags) -> Result<bool> {
    ensure!(rustix::process::geteuid().is_root(), "namespaces need root: sudo make torture");
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seed = flags.seed.unwrap_or_else(clock);
    let all = Part::value_variants().iter().copied();
    let parts: Vec<Part> = all.filter(|part| flags.only.is_empty() || flags.only.contains(part)).collect();
    println!("torture: seed {seed}, {} minutes, {parts:?}", flags.minutes);
    if parts.contains(&Part::Churn) {
        churn::ensure_room(flags.nodes)?;
    }
    let weights: f64 = parts.iter().map(|part| part.weight()).sum();
    std::fs::create_dir_all(&flags.out)?;
    let mut items = Vec::new();
    for part in parts {
        let time = Duration::try_from_secs_f64(flags.minutes * 60.0 * part.weight() / weights)?;
        let name = format!("{part:?}").to_lowercase();
        println!("\n{name}: {} s", time.as_secs());
        let mut run = Run::new(name, seed, time, flags.nodes, flags.out.clone());
        let outcome = part.run(&mut run);
        items.append(&mut run.end(outcome));
        report::write(&flags.out, &items)?;
    }
    print!("\n{}", report::table(&items));
    println!("{}", flags.out.join("report.json").display());
    Ok(items.iter().all(|item| item.holds))
}
