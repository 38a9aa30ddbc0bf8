//! Runs a command while the cluster's underlay is captured, and writes what the captures saw as JSON.
//!
//! It fails where the command fails, where a pod's packet was on the underlay outside of the tunnel,
//! where the captures lost packets, or where they did not see the deliberate ones.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use wg_overlay_e2e::cluster::Cluster;

/// Captures the cluster's underlay while a command runs.
#[derive(Parser)]
struct Flags {
    /// Where the report goes.
    #[arg(long)]
    report: PathBuf,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let flags = Flags::parse();
    let cluster = Cluster::find().context("no cluster runs: e2e/cluster/cluster up")?;
    let folder = std::env::temp_dir().join(format!("wgo-e2e-capture-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut capture = cluster.capture(&folder)?;
    capture.positive_control()?;
    let (program, arguments) = flags.command.split_first().context("no command")?;
    let status =
        Command::new(program).args(arguments).status().with_context(|| format!("start {program}"))?;
    capture.positive_control().context("after the command")?;
    let report = capture.stop()?;
    if let Some(parent) = flags.report.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    std::fs::write(&flags.report, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", flags.report.display()))?;
    println!("{report}");
    report.assert_no_plaintext()?;
    ensure!(report.class("wireguard").packets > 0, "the captures saw no WireGuard at all");
    // The packets stay where something was wrong with them.
    std::fs::remove_dir_all(folder)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
