//! `wg-overlay cleanup`.

use std::{io, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use wg_overlay_cni::{Collection, collect, store};
use wg_overlay_host::Scope;
use wg_overlay_mesh::cleanup;

use super::{ConfigArgs, agent::open_host, status::fetch};
use crate::{
    cluster::{connect, withdraw},
    cni_install,
    config::Config,
    server::SOCKET,
};

/// The API server may be gone for good when a node is cleaned.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on although pods are still attached: they lose their network.
    #[arg(long)]
    force: bool,
}

/// Removes what is ours, the guards last, and prints each thing removed.
pub(super) async fn run(args: CleanupArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    if fetch(&config.state_dir.join(SOCKET)).await.is_ok() {
        bail!("the agent runs on this node and would put everything back: stop it first");
    }
    let pods = store(&config.state_dir).list().unwrap_or_default().len();
    if pods > 0 && !args.force {
        bail!("{pods} pods are attached: drain the node first, or lose their network with --force");
    }
    let mut complete = true;
    cni_install::uninstall(&config).context("can't remove the CNI files")?;
    println!("removed CNI files");
    remove_pod_links(&config)?;
    let mut host = open_host(&config)?;
    let observed = host.observe(Scope::ALL).await?.clone();
    let plan = cleanup(&observed);
    let failed = host.apply_all(&plan.steps).await;
    for step in plan.steps.iter().filter(|step| !failed.iter().any(|(f, _)| f == *step)) {
        println!("{step}");
    }
    for (_, error) in failed {
        complete = false;
        eprintln!("wg-overlay: {:#}", anyhow::Error::from(error));
    }
    match std::fs::remove_dir_all(&config.state_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            complete = false;
            eprintln!("wg-overlay: can't remove {}: {error}", config.state_dir.display());
        }
        _ => println!("removed {}", config.state_dir.display()),
    }
    if let Err(error) = withdraw_annotations(&config).await {
        complete = false;
        let node = &config.node_name;
        eprintln!("wg-overlay: the annotations of Node {node} stay ({error:#}). Remove them with");
        eprintln!(
            "  kubectl annotate node {node} wg-overlay.io/public-key- wg-overlay.io/overlay-ips- wg-overlay.io/listen-port- wg-overlay.io/mtu-"
        );
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Deletes the pods' links and frees their addresses: with nothing kept, all have lost their pod.
fn remove_pod_links(config: &Config) -> anyhow::Result<()> {
    if !config.state_dir.exists() {
        return Ok(());
    }
    match collect(&config.state_dir, Some(&Default::default()))? {
        Collection::Done(freed) => {
            freed.links.iter().for_each(|link| println!("delete link {link}"));
            Ok(())
        }
        Collection::Busy => bail!("a pod is being attached: try again in a moment"),
    }
}

async fn withdraw_annotations(config: &Config) -> anyhow::Result<()> {
    let work = async {
        let client = connect(config.api_server.as_deref()).await?;
        withdraw(&client, &config.node_name, config.legacy_annotations).await?;
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, work).await.context("the API server does not answer")??;
    println!("removed annotations of Node {}", config.node_name);
    Ok(())
}
