//! `bench`: us, the peers and the floor side by side, in one run.
//!
//! A part of the bench (`Group`) measures its rows and puts them into `Findings`; a part that fails says why, and its
//! rows are in the report as skipped. Who is compared is alternated round by round.

// Its figures are counts and times far below 2^52.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

mod api;
mod engines;
mod floor;
mod handshake;
mod ipam;
mod kernel;
mod latency;
mod mesh;
mod nodes;
mod plugin;
mod process;
mod report;
mod rows;
mod scale;
mod start;
mod stats;
mod strace;
mod tunnel;
mod watched;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use report::Findings;
use rows::{Group, ROWS};

/// Measures wg-overlay beside its peers and the floor, and writes one report.
///
/// Every row of the report has a target or is told only; a row whose part could not run is skipped with the reason, and
/// never holds. A ratio is the median of paired ratios, ours over the baseline of the same round, so that what slows the
/// whole machine slows both; in brackets its lower 90 % bound (sign test). `make bench` builds what this needs first.
///
/// Writes JSON to OUT/report.json, and, after a whole run, benches/report.md.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  make bench                           everything; quiet the machine first
  bench --only plugin --only ipam      two parts of it
  bench --smoke                        the few minutes of it that CI runs

Needs root, and: WG_OVERLAY_BIN_DIR (wg-overlay, wg-overlay-cni), WG_OVERLAY_E2E_BIN_DIR (node-api, reserve, peak-rss),
WG_OVERLAY_CACHE (bench/bin, where benches/peers puts the peers). `make bench` sets all of them.

Exit status: 0 measured, whether the targets hold or not: the report says; 1 the run itself failed, or, with --smoke, a
ratio lies beyond its target by more than a factor of 2, or was not measured.")]
struct Flags {
    /// Only this part; may be given several times.
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Group>,
    /// The short form for CI: the rows that a mistake would show in, fewer rounds, wide margins.
    #[arg(long, conflicts_with = "only")]
    smoke: bool,
    /// Print the JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// How many rounds are alternated; the bounds need 4 at least.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// The half of `--only kernel` that runs in the virtual machine.
    #[arg(long, hide = true)]
    guest: bool,
    /// Where the JSON goes.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// How a part is to measure.
pub struct Options {
    /// Rounds that are alternated.
    pub rounds: u32,
    /// Whether this is the short run.
    pub smoke: bool,
}

/// Why the smoke run has no figure.
const NOT_SMOKE: &str = "not part of the smoke run";

/// A part's work.
type Part = fn(&Options, &mut Findings) -> Result<()>;

const PARTS: &[(Group, Part)] = &[
    (Group::Plugin, plugin::measure),
    (Group::Ipam, ipam::measure),
    (Group::Mesh, mesh::measure),
    (Group::Scale, scale::measure),
    (Group::Start, start::measure),
    (Group::Handshake, handshake::measure),
    (Group::Tunnel, tunnel::measure),
    (Group::Latency, latency::measure),
    (Group::Kernel, kernel::measure),
    (Group::Api, api::measure),
];

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let rounds = flags.rounds.unwrap_or(if flags.smoke { 7 } else { 11 });
    let options = Options { rounds, smoke: flags.smoke };
    if flags.guest {
        return kernel::guest(&options);
    }
    let mut findings = Findings::default();
    for row in ROWS {
        let group = row.group;
        if !flags.only.is_empty() && !flags.only.contains(&group) {
            findings.skip([row], "not asked for");
        } else if flags.smoke && !smokes(group) {
            findings.skip([row], NOT_SMOKE);
        }
    }
    for (group, part) in PARTS {
        let asked = flags.only.is_empty() || flags.only.contains(group);
        if asked && (!flags.smoke || smokes(*group)) {
            eprintln!("bench: {group:?}");
            if let Err(error) = part(&options, &mut findings) {
                findings.skip(ROWS.iter().filter(|row| row.group == *group), &format!("{error:#}"));
            }
            if flags.smoke {
                findings.skip(ROWS.iter().filter(|row| row.group == *group && !row.smoke), NOT_SMOKE);
            }
        }
    }
    write(flags, &options, &findings)?;
    if flags.smoke { findings.judge_smoke() } else { Ok(()) }
}

fn smokes(group: Group) -> bool {
    ROWS.iter().any(|row| row.group == group && row.smoke)
}

fn write(flags: &Flags, options: &Options, findings: &Findings) -> Result<()> {
    let json = serde_json::to_string_pretty(&findings.lines(options.smoke))? + "\n";
    let markdown = findings.markdown(&head(options), options.smoke);
    std::fs::create_dir_all(&flags.out).with_context(|| format!("make {}", flags.out.display()))?;
    let put = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    put(flags.out.join("report.json"), &json)?;
    if !flags.smoke && flags.only.is_empty() {
        put(PathBuf::from("benches/report.md"), &markdown)?;
    }
    print!("{}", if flags.json { &json } else { &markdown });
    Ok(())
}

/// On what it was measured.
fn head(options: &Options) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, name)| name);
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Written by `make bench`: {} rounds, {cores} cores of {model}, Linux {}, load {} at the end. A ratio is the median \
         of paired ratios, in brackets its lower 90 % bound (sign test).",
        options.rounds,
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
    )
}

/// Measures everybody once a round, after one round that isn't counted, and gives each one's figures. Every second round
/// goes backwards, so that none always follows the same other.
///
/// # Errors
/// A measurement's.
pub fn each_round<S: Copy, D: Default, const N: usize>(
    rounds: u32,
    subjects: [S; N],
    measure: impl FnMut(S, &mut D) -> Result<()>,
) -> Result<[D; N]> {
    let mut all = each_round_of(rounds, &subjects, measure)?.into_iter();
    Ok(std::array::from_fn(|_| all.next().unwrap_or_default()))
}

/// Likewise, of as many as there are.
///
/// # Errors
/// A measurement's.
pub fn each_round_of<S: Copy, D: Default>(
    rounds: u32,
    subjects: &[S],
    mut measure: impl FnMut(S, &mut D) -> Result<()>,
) -> Result<Vec<D>> {
    let mut data: Vec<D> = subjects.iter().map(|_| D::default()).collect();
    for subject in subjects {
        measure(*subject, &mut D::default())?;
    }
    for round in 0..rounds {
        let mut all: Vec<(&S, &mut D)> = subjects.iter().zip(&mut data).collect();
        if round % 2 == 1 {
            all.reverse();
        }
        all.into_iter().try_for_each(|(subject, series)| measure(*subject, series))?;
    }
    Ok(data)
}
