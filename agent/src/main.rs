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
mod record;
mod resolver;
mod rotation;
mod server;
mod status;

use std::process::ExitCode;

use clap::Parser;
use wg_overlay_userspace::Recycling;

/// dlmalloc, but for the threads of a user-space device.
#[global_allocator]
static ALLOCATOR: Recycling = Recycling;

fn main() -> ExitCode {
    let command = commands::Cli::parse();
    // All of them wait rather than compute: one thread. Blocking calls, and a user-space device's packets, have their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
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
