//! `wg-overlay cleanup`.

use std::{fs, io, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, builder::FalseyValueParser};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use wg_overlay_cni::{Collection, collect, store};
use wg_overlay_host::{Host, Scope};
use wg_overlay_mesh::{ObservedState, cleanup};

use super::{
    ConfigArgs,
    agent::{open_host, stopped},
};
use crate::{
    cluster::{connect, withdraw},
    cni_install,
    config::Config,
    identity,
    server::{SOCKET, serve_done},
};

/// The API server may be gone for good when a node is cleaned. A user-space device takes milliseconds to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often something is looked at that others do in their own time.
const LOOK: Duration = Duration::from_millis(500);

/// Pods named in a refusal.
const NAMED: usize = 10;

#[derive(Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on although pods are still attached: they lose their network.
    #[arg(long, env = "WG_OVERLAY_CLEANUP_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,
    /// Wait for a running agent to end, and once everything is removed, say so at healthAddress' /readyz until SIGTERM.
    #[arg(long)]
    stay: bool,
}

/// Removes what is ours, the guards last, and prints each thing removed. What is gone already is no error.
pub(super) async fn run(args: CleanupArgs) -> anyhow::Result<ExitCode> {
    let (stay, force) = (args.stay, args.force);
    let config = args.config.load()?;
    let work = async {
        await_agents_end(&config, stay).await?;
        refuse_attached(&config, force)?;
        if !clean(&config).await? {
            return Ok(ExitCode::FAILURE);
        }
        if agent_runs(&config).await {
            bail!("an agent was started meanwhile and puts everything back: stop it, and clean up again");
        }
        if stay {
            println!("everything is removed");
            serve_done(config.health_address).await?;
        }
        Ok(ExitCode::SUCCESS)
    };
    if !stay {
        return work.await;
    }
    tokio::select! {
        outcome = work => outcome,
        // what a stop leaves, the next run removes
        () = stopped()? => Ok(ExitCode::SUCCESS),
    }
}

/// A stuck agent, too, takes connections.
async fn agent_runs(config: &Config) -> bool {
    UnixStream::connect(config.state_dir.join(SOCKET)).await.is_ok()
}

async fn await_agents_end(config: &Config, stay: bool) -> anyhow::Result<()> {
    if !agent_runs(config).await {
        return Ok(());
    }
    if !stay {
        bail!("the agent runs on this node and would put everything back: stop it first");
    }
    println!("the agent runs on this node: waiting for its end");
    while agent_runs(config).await {
        sleep(LOOK).await;
    }
    Ok(())
}

fn refuse_attached(config: &Config, force: bool) -> anyhow::Result<()> {
    if force {
        return Ok(());
    }
    let held =
        store(&config.state_dir).list().context("can't see whether pods are attached; --force goes on")?;
    if held.is_empty() {
        return Ok(());
    }
    let addresses = held.iter().filter_map(|reservation| Some(reservation.addresses.first()?.to_string()));
    let mut named: Vec<String> = addresses.take(NAMED).collect();
    if held.len() > NAMED {
        named.push("…".into());
    }
    let (pods, named, node) = (held.len(), named.join(", "), &config.node_name);
    bail!(
        "{pods} pods are attached ({named}): drain the node first (kubectl drain {node} --ignore-daemonsets), or lose their network with --force (WG_OVERLAY_CLEANUP_FORCE=true); kubectl get pods -A -o wide --field-selector spec.nodeName={node} tells whose addresses these are"
    )
}

/// Returns whether everything is removed.
async fn clean(config: &Config) -> anyhow::Result<bool> {
    let mut complete = true;
    cni_install::uninstall(config).context("can't remove the CNI files")?;
    println!("removed CNI files");
    remove_pod_links(config)?;
    let mut host = open_host(config)?;
    let plan = cleanup(&observe(&mut host).await?);
    for warning in host.warnings() {
        eprintln!("wg-overlay: {warning}");
    }
    let failed = host.apply_all(&plan.steps).await;
    for step in plan.steps.iter().filter(|step| !failed.iter().any(|(f, _)| f == *step)) {
        println!("{step}");
    }
    for (_, error) in failed {
        complete = false;
        eprintln!("wg-overlay: {:#}", anyhow::Error::from(error));
    }
    complete &= removed(&config.state_dir, remove_folder(&config.state_dir));
    if let Some(file) = &config.key_file {
        for file in identity::files(file) {
            complete &= removed(&file, fs::remove_file(&file));
        }
        if let Some(folder) = file.parent().filter(|folder| folder.ends_with("wg-overlay")) {
            // it stays where somebody keeps something else in it
            let _kept = fs::remove_dir(folder);
        }
    }
    if let Err(error) = withdraw_from_node(config).await {
        complete = false;
        let node = &config.node_name;
        eprintln!("wg-overlay: what the agent wrote on Node {node} stays ({error:#}). Remove it with");
        eprintln!(
            "  kubectl annotate node {node} wg-overlay.io/public-key- wg-overlay.io/overlay-ips- wg-overlay.io/listen-port- wg-overlay.io/mtu- wg-overlay.io/next-public-key- wg-overlay.io/rotation-"
        );
        eprintln!(
            r#"  kubectl patch node {node} --subresource=status -p '{{"status":{{"conditions":[{{"type":"NetworkUnavailable","$patch":"delete"}}]}}}}'"#
        );
    }
    Ok(complete)
}

/// A user-space device that is just ending has lost its socket and not its link yet.
async fn observe(host: &mut Host) -> anyhow::Result<ObservedState> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match host.observe(Scope::ALL).await.cloned() {
            Err(error) if error.is_retryable() && Instant::now() < deadline => sleep(LOOK).await,
            outcome => return Ok(outcome?),
        }
    }
}

/// Removes a folder and all that is in it. One that is a volume of this pod stays, empty.
fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(_) if fs::read_dir(path).is_ok_and(|mut left| left.next().is_none()) => Ok(()),
        outcome => outcome,
    }
}

/// Says what became of a file or folder; what was not there is removed.
fn removed(path: &Path, outcome: io::Result<()>) -> bool {
    match outcome {
        Ok(()) => println!("removed {}", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            eprintln!("wg-overlay: can't remove {}: {error}", path.display());
            return false;
        }
    }
    true
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

async fn withdraw_from_node(config: &Config) -> anyhow::Result<()> {
    let work = async {
        let client = connect(config.api_server.as_deref()).await?;
        anyhow::Ok(withdraw(&client, &config.node_name, config.legacy_annotations).await?)
    };
    if timeout(PATIENCE, work).await.context("the API server does not answer")?? {
        println!("removed what the agent wrote on Node {}", config.node_name);
    }
    Ok(())
}
