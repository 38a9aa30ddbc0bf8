//! `wg-overlay device NAME`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use tokio::process::Command;
use wg_overlay_mesh::NEXT_DEVICE;
use wg_overlay_userspace::{DeviceConfig, MAX_MTU, Standby, standby};

use super::agent::stopped;
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
    /// Sleep, and run this device and wgo1 when the agent asks at this socket (its `deviceSocket`), which also tells the MTU.
    #[arg(long, value_name = "SOCKET", conflicts_with = "mtu")]
    standby: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT; the device itself also ends with its link.
pub(super) async fn run(args: DeviceArgs) -> anyhow::Result<ExitCode> {
    logging::start();
    let stopped = stopped()?;
    match args.standby {
        Some(socket) => sleep(args.name, socket, stopped).await?,
        None => {
            // a device that has lost one of its threads would carry packets one way only: better gone, and started again
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                report(panic);
                std::process::abort();
            }));
            let config = DeviceConfig { name: args.name, mtu: args.mtu.min(MAX_MTU) };
            wg_overlay_userspace::run(config, stopped).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn sleep(name: String, socket: PathBuf, stopped: impl Future<Output = ()>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("can't find this program's own path")?;
    let device = |name: &str, mtu: u16| {
        let mut command = Command::new(&program);
        command.args(["device", name, "--mtu", &mtu.to_string()]);
        command
    };
    Ok(standby(Standby { names: [name, NEXT_DEVICE.to_owned()], socket }, device, stopped).await?)
}
