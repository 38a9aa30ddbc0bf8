//! Runs a user-space device alone, for tests and measurements: `device NAME [MTU]`, until SIGINT
//! or SIGTERM, or until its link is deleted.

use std::{error::Error, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wg_overlay_userspace::{DeviceConfig, Recycling, run};

#[global_allocator]
static ALLOCATOR: Recycling = Recycling;

/// Runs the device that the arguments name; a failure is told on stderr.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn start() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: device NAME [MTU]")?;
    let mtu = arguments.next().map_or(Ok(1420), |mtu| mtu.parse())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    run(DeviceConfig { name, mtu }, shutdown).await?;
    Ok(())
}
