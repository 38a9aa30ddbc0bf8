//! `wg-overlay rotate-key`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use tokio::time::sleep;

use super::{
    Output,
    status::{fetch, request},
};
use crate::server::SOCKET;

/// How often the agent is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct RotateKeyArgs {
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The agent's state folder.
    #[arg(long, value_name = "FOLDER", default_value = "/run/wg-overlay", env = "WG_OVERLAY_STATE_DIR")]
    state_dir: PathBuf,
    /// Only begin it; `wg-overlay status` shows how far it is.
    #[arg(long)]
    no_wait: bool,
}

/// Asks the agent to begin, and tells how far it is until it has ended.
pub(super) async fn run(args: RotateKeyArgs) -> anyhow::Result<ExitCode> {
    let socket = args.state_dir.join(SOCKET);
    let key = match fetch(&socket).await {
        Ok(status) => status.device.map(|device| device.public_key),
        Err(error) => {
            eprintln!("wg-overlay: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    request(&socket, "POST /rotate-key").await?;
    if args.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    let mut told = String::new();
    loop {
        sleep(LOOK).await;
        // an agent that is started anew goes on with it
        let Ok(status) = fetch(&socket).await else { continue };
        let rotation = &status.rotation;
        let Some(phase) = &rotation.phase else {
            let changed = status.device.as_ref().map(|device| &device.public_key) != key.as_ref();
            match (args.output, &status.device) {
                (Output::Json, _) => println!("{}", serde_json::to_string_pretty(rotation)?),
                (Output::Text, Some(device)) if changed => println!("the key is {} now", device.public_key),
                (Output::Text, _) => {
                    println!("the key has not changed: {}", rotation.last.as_deref().unwrap_or("unknown why"))
                }
            }
            return Ok(if changed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        };
        let waiting = match rotation.waiting_for.as_slice() {
            [] => String::new(),
            nodes => format!(", waiting for {}", nodes.join(", ")),
        };
        let text = format!("{phase}{waiting}");
        if args.output == Output::Text && text != told {
            println!("{text}");
        }
        told = text;
    }
}
