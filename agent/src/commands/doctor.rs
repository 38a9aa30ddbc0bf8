//! `wg-overlay doctor`.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use clap::Args;

use super::{ConfigArgs, Output, status::fetch};
use crate::{
    config::{self, Config},
    doctor::{Facts, examine, is_ill, render_findings},
    server::SOCKET,
};

#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Makes every check and prints what it found.
pub(super) async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let (mut config, problem) = match args.config.load() {
        Ok(config) => (config, None),
        Err(error) => (defaults()?, Some(error.to_string())),
    };
    let agent = fetch(&config.state_dir.join(SOCKET)).await.map_err(|error| format!("{error:#}"));
    if let (Ok(status), Some(_)) = (&agent, &problem) {
        config.node_name.clone_from(&status.node);
    }
    let facts = Facts::read(config, problem, agent).await;
    let findings = examine(&facts);
    match args.output {
        Output::Text => print!("{}", render_findings(&findings)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
    }
    Ok(if is_ill(&findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What an agent would have that is told its name only: kubeadm names a Node by its host.
fn defaults() -> anyhow::Result<Config> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase();
    let flags = BTreeMap::from([("nodeName", name)]);
    Ok(config::load(Path::new(""), false, |_| None, flags)?)
}
