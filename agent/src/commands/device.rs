//! `wg-overlay device NAME`.

use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use wg_overlay_userspace::{DeviceConfig, MAX_MTU};

use crate::logging;

/// The default MTU: an underlay of 1500 less the tunnel's 80.
const DEFAULT_MTU: u16 = 1420;

#[derive(Args)]
pub(super) struct DeviceArgs {
    /// The name of the link.
    name: String,
    /// The link's MTU in bytes.
    #[arg(long, default_value_t = DEFAULT_MTU)]
    mtu: u16,
}

/// Runs until SIGTERM, SIGINT or the link's deletion.
pub(super) async fn run(args: DeviceArgs) -> anyhow::Result<ExitCode> {
    logging::start();
    // a device that has lost one of its tasks would carry packets one way only: better gone, and started again
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    wg_overlay_userspace::run(DeviceConfig { name: args.name, mtu: args.mtu.min(MAX_MTU) }, stopped).await?;
    Ok(ExitCode::SUCCESS)
}
