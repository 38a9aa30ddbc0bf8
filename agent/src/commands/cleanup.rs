//! `wg-overlay cleanup`.

use std::{fs, io, path::Path, process::ExitCode, time::Duration};

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
    let pods = store(&config.state_dir)
        .list()
        .context("can't see whether pods are attached; --force goes on")
        .or_else(|error| if args.force { Ok(Vec::new()) } else { Err(error) })?
        .len();
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
    complete &= removed(&config.state_dir, fs::remove_dir_all(&config.state_dir));
    if let Some(file) = &config.key_file {
        complete &= removed(file, fs::remove_file(file));
        if let Some(folder) = file.parent().filter(|folder| folder.ends_with("wg-overlay")) {
            // it stays where somebody keeps something else in it
            let _kept = fs::remove_dir(folder);
        }
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

/// Says what became of a file or folder; what was not there is removed.
fn removed(path: &Path, outcome: io::Result<()>) -> bool {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("wg-overlay: can't remove {}: {error}", path.display());
            false
        }
        _ => {
            println!("removed {}", path.display());
            true
        }
    }
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
