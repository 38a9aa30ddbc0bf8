//! The `wg-overlay` command: the node agent, the user-space device, and what a person asks of them.

mod cluster;
mod cni_install;
mod commands;
mod config;
mod doctor;
mod identity;
mod logging;
mod metrics;
mod reconciler;
mod resolver;
mod server;
mod status;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command = commands::Cli::parse();
    // The agent waits, it doesn't compute: one thread, and blocking calls have threads of their own. A user-space device
    // seals and opens packets.
    let mut builder = match command.computes() {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("wg-overlay: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(command.run()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wg-overlay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
