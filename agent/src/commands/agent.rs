//! `wg-overlay agent`.

use std::{collections::BTreeSet, net::IpAddr, process::ExitCode};

use anyhow::Context;
use ipnet::IpNet;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};
use wg_overlay_host::{DeviceMode, DeviceProgram, Host, HostConfig};
use wg_overlay_mesh::{Local, Settings};

use crate::{
    cluster::{Nodes, api_server_host, connect, watch},
    config::Config,
    identity::{self, Identity, KeyFile},
    logging,
    reconciler::{Parts, Reconciler},
    resolver::Resolver,
    server,
};

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    logging::start();
    info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, "starting");
    let mut host = open_host(&config)?;
    let client = connect(config.api_server.as_deref()).await?;
    let identity = identity(&config, &mut host).await?;
    for note in &identity.notes {
        warn!("{note}");
    }
    let local = local(&config, identity.keys.key.public_key()).await?;

    let nodes = Nodes::new(&config.node_name);
    let resolver = Resolver::default();
    let (ask, asked) = mpsc::channel(16);
    server::serve(&config, ask).await?;
    tokio::spawn(watch(config.api_server.clone(), nodes.clone()));
    tokio::spawn({
        let resolver = resolver.clone();
        async move { resolver.run().await }
    });
    let parts = Parts { config, client, nodes, host, resolver, local, identity };
    // a task: what wakes it is on its thread, and need not go through the kernel
    tokio::spawn(Reconciler::new(parts).run(asked, stopped()?)).await??;
    info!("stopping; the kernel stays as it is");
    Ok(ExitCode::SUCCESS)
}

/// The kernel of this node, as the configuration wants it driven.
pub(super) fn open_host(config: &Config) -> anyhow::Result<Host> {
    let host = HostConfig {
        state_dir: config.state_dir.clone(),
        listen_port: config.listen_port,
        device_mode: config.device,
        device_socket: config.device_socket.clone(),
        device_program: DeviceProgram::own().context("can't find this program's own path")?,
    };
    Ok(Host::open(host)?)
}

/// The node's key, from the device or the file.
pub(super) async fn identity(config: &Config, host: &mut Host) -> anyhow::Result<Identity> {
    let device = host.device_private_key().await?;
    Ok(identity::ensure(key_file(config), device))
}

/// Where the node's key is kept, if it is.
pub(super) fn key_file(config: &Config) -> Option<KeyFile> {
    let path = config.key_file.clone()?;
    let machine_id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Some(KeyFile { path, node: config.node_name.clone(), machine_id: machine_id.trim().to_owned() })
}

/// This node as decisions see it at the start.
///
/// # Errors
/// Where it isn't known where the API server is.
pub(super) async fn local(config: &Config, public_key: wg_overlay_mesh::PublicKey) -> anyhow::Result<Local> {
    let settings = Settings {
        cluster_cidrs: config.pod_cidrs.clone(),
        overlay_cidrs: config.overlay_cidrs.clone(),
        reserved: api_server_addresses(config)
            .await?
            .into_iter()
            .map(|net| (net, "the API server".to_owned()))
            .collect(),
        listen_port: config.listen_port,
        mtu: config.mtu,
        keepalive: config.keepalive,
        masquerade: config.masquerade,
        non_masquerade: config.non_masquerade.clone(),
        fail_closed: config.fail_closed,
    };
    // the kernel takes any MTU; a user-space device has room for this much
    let max_mtu = match config.device {
        DeviceMode::Kernel => u32::from(u16::MAX),
        DeviceMode::Auto | DeviceMode::UserSpace => u32::from(wg_overlay_userspace::MAX_MTU),
    };
    Ok(Local {
        node_name: config.node_name.clone(),
        public_key,
        next_key: None,
        rotation: None,
        max_mtu,
        settings,
        holders: Default::default(),
        key_holders: Default::default(),
    })
}

/// What is known of where the API server is, by the service of the cluster and by the URL that is asked: no PodCIDR may
/// cover it. Where that URL has a name instead of an address, nothing is known of it.
async fn api_server_addresses(config: &Config) -> anyhow::Result<BTreeSet<IpNet>> {
    let service = std::env::var("KUBERNETES_SERVICE_HOST").ok();
    let asked = api_server_host(config.api_server.as_deref()).await?;
    let ips = [service, asked].into_iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok());
    Ok(ips.map(IpNet::from).collect())
}

/// Resolves at SIGTERM or SIGINT.
pub(super) fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
