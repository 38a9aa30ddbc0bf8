//! What the agent serves: metrics, probes, and the status on a socket of the node.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json, Router, extract,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot},
};

use crate::{
    config::Config,
    metrics::{Counters, encode_metrics},
    status::{State, Status},
};

/// What the reconciler answers when it is asked.
#[derive(Debug, Clone)]
pub struct Report {
    /// The node's status.
    pub status: Status,
    /// What was counted.
    pub counters: Counters,
}

/// What a probe wants to know: nothing is read for it.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether this node's own device, guards and valid peers are programmed, and pods are attached.
    pub ready: bool,
    /// How far the agent is.
    pub state: State,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// What the reconciler is asked, once it is between two reconciles.
#[derive(Debug)]
pub enum Question {
    /// The status of this moment, for which the peers are read.
    Report(oneshot::Sender<Report>),
    /// Whether all is well, as far as it is known.
    Health(oneshot::Sender<Health>),
    /// To begin to change the node's key; the answer is why it can't.
    RotateKey(oneshot::Sender<Result<(), String>>),
}

/// The reconciler's ear.
pub type Ask = mpsc::Sender<Question>;

/// A reconciler that doesn't answer for this long is stuck: a plan of 5,000 peers takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name of the agent's socket in the state folder.
pub const SOCKET: &str = "agent.sock";

struct Shared {
    ask: Ask,
    peer_metrics: Option<bool>,
}

type App = extract::State<Arc<Shared>>;

/// Serves until the process ends. Returns once all three are bound.
///
/// # Errors
/// Where an address or the socket can't be bound.
pub async fn serve(config: &Config, ask: Ask) -> anyhow::Result<()> {
    let shared = Arc::new(Shared { ask, peer_metrics: config.peer_metrics });
    let metrics = bind(config.metrics_address).await.context("metricsAddress")?;
    let health = bind(config.health_address).await.context("healthAddress")?;
    let socket = bind_socket(&config.state_dir.join(SOCKET)).await?;
    let app = |router: Router<Arc<Shared>>| router.with_state(shared.clone());
    let metrics_app = app(Router::new().route("/metrics", get(metrics_text)));
    let health_app = app(Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)));
    let socket_routes = Router::new().route("/status", get(status)).route("/rotate-key", post(rotate_key));
    let status_app = app(socket_routes);
    tokio::spawn(async move { axum::serve(metrics, metrics_app).await });
    tokio::spawn(async move { axum::serve(health, health_app).await });
    tokio::spawn(async move { axum::serve(socket, status_app).await });
    Ok(())
}

/// Says at `/readyz` that a cleanup is done, until the process ends.
///
/// # Errors
/// Where the address can't be bound.
pub async fn serve_done(address: SocketAddr) -> anyhow::Result<()> {
    let listener = bind(address).await.context("healthAddress")?;
    let app = Router::new().route("/readyz", get(async || "everything is removed\n"));
    Ok(axum::serve(listener, app).await?)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        // a kernel without IPv6: every address is then every IPv4 address
        Err(error)
            if address.ip().is_unspecified()
                && address.is_ipv6()
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
            TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))
        }
        other => other.with_context(|| format!("can't listen on {address}; does something else?")),
    }
}

async fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        anyhow::bail!("another agent answers at {}: only one may run on a node", path.display());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("can't replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("can't listen at {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn ask<T>(
    shared: &Shared,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, (StatusCode, &'static str)> {
    let asked = async {
        let (answer, answered) = oneshot::channel();
        shared.ask.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    let stuck = (StatusCode::SERVICE_UNAVAILABLE, "the reconciler does not answer\n");
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten().ok_or(stuck)
}

async fn metrics_text(extract::State(shared): App) -> Result<impl IntoResponse, (StatusCode, &'static str)> {
    let report = ask(&shared, Question::Report).await?;
    let text = encode_metrics(&report.status, &report.counters, shared.peer_metrics);
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

async fn healthz(extract::State(shared): App) -> Result<&'static str, (StatusCode, &'static str)> {
    ask(&shared, Question::Health).await.map(|_| "ok\n")
}

async fn readyz(extract::State(shared): App) -> (StatusCode, String) {
    match ask(&shared, Question::Health).await {
        Ok(Health { ready: true, .. }) => (StatusCode::OK, "ok\n".into()),
        Ok(Health { state, problems, .. }) => {
            let text = format!("{state:?}\n{}\n", problems.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        Err((code, text)) => (code, text.to_owned()),
    }
}

async fn status(extract::State(shared): App) -> Result<Json<Status>, (StatusCode, &'static str)> {
    ask(&shared, Question::Report).await.map(|r| Json(r.status))
}

async fn rotate_key(extract::State(shared): App) -> (StatusCode, String) {
    match ask(&shared, Question::RotateKey).await {
        Ok(Ok(())) => (StatusCode::ACCEPTED, "begun\n".into()),
        Ok(Err(reason)) => (StatusCode::CONFLICT, format!("{reason}\n")),
        Err((code, text)) => (code, text.to_owned()),
    }
}
