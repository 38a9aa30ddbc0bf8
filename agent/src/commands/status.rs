//! `wg-overlay status`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::Output;
use crate::{
    cluster::{Access, ask_all, connect_person},
    server::SOCKET,
    status::{PeerState, Show, State, Status, render, render_overview},
};

/// Longer than the agent itself waits for its reconciler.
const PATIENCE: Duration = Duration::from_secs(35);

#[derive(Args)]
pub(super) struct StatusArgs {
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The agent's state folder.
    #[arg(long, value_name = "FOLDER", default_value = "/run/wg-overlay", env = "WG_OVERLAY_STATE_DIR")]
    state_dir: PathBuf,
    /// Ask every node's agent, from any machine with a kubeconfig: a line a node, worst first, and the pairs that don't
    /// talk. It needs list on nodes, and in the namespace list on pods, create and get on pods/exec.
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    asking: AskingArgs,
}

#[derive(Args)]
struct AskingArgs {
    /// With --cluster: list every node and pair. Otherwise beyond 100 nodes only those that aren't converged, and
    /// 20 pairs.
    #[arg(long, requires = "cluster")]
    all: bool,
    /// With --cluster: the agents' namespace.
    #[arg(long, short, requires = "cluster", default_value = "wg-overlay")]
    namespace: String,
    /// With --cluster: the kubeconfig [default: KUBECONFIG, ~/.kube/config, or the pod's service account].
    #[arg(long, requires = "cluster", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// With --cluster: the kubeconfig's context [default: its current one].
    #[arg(long, requires = "cluster", value_name = "NAME")]
    context: Option<String>,
    /// With --cluster: how many seconds a node's agent may take.
    #[arg(long, requires = "cluster", value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

async fn run_cluster(asking: AskingArgs, output: Output) -> anyhow::Result<ExitCode> {
    let access = Access { kubeconfig: asking.kubeconfig, context: asking.context };
    let asked = async {
        let client = connect_person(&access).await?;
        ask_all(&client, &asking.namespace, Duration::from_secs(asking.timeout)).await
    };
    let overview = match asked.await {
        Ok(overview) => overview,
        Err(error) => {
            eprintln!("wg-overlay: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    match output {
        Output::Text => {
            let show = Show { all: asking.all, namespace: &asking.namespace };
            print!("{}", render_overview(&overview, show));
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&overview)?),
    }
    Ok(if overview.converged { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Asks the agent and prints its answer.
pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    if args.cluster {
        return run_cluster(args.asking, args.output).await;
    }
    let status = match fetch(&args.state_dir.join(SOCKET)).await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("wg-overlay: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    match args.output {
        Output::Text => print!("{}", render(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    let down = status
        .peers
        .iter()
        .any(|p| matches!(p.state, PeerState::Down | PeerState::Refused | PeerState::Unresolved));
    let converged = status.state == State::Converged && !down;
    Ok(if converged { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Asks the agent for its status.
pub(super) async fn fetch(socket: &std::path::Path) -> anyhow::Result<Status> {
    let body = request(socket, "GET /status").await?;
    serde_json::from_str(&body).context("the agent's answer is not of this version")
}

/// Asks the agent. The one request needs no HTTP client: it is answered and the connection closed.
pub(super) async fn request(socket: &std::path::Path, what: &str) -> anyhow::Result<String> {
    let unreachable = || format!("no agent answers at {}: is it running on this node?", socket.display());
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await.with_context(unreachable)?;
        stream.write_all(format!("{what} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.with_context(unreachable)??;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.0 20") => Ok(body.to_owned()),
        Some((_, body)) => bail!("the agent answers: {}", body.trim()),
        None => bail!("the agent's answer broke off"),
    }
}
