//! Asking every node's agent for its status, through the API server: by exec in its pod, so that no port is opened and
//! the person's own rights count.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{AttachParams, ListParams},
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{io::AsyncReadExt, time::timeout};

use super::chain;
use crate::status::{AGENT_LABELS, Answer, Collector, Condition, Overview, Status};

/// How a person's machine reaches the cluster.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// A kubeconfig; `None`: KUBECONFIG, `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it; `None`: its current one.
    pub context: Option<String>,
}

/// Connects as kubectl would: unlike the agents' connection, this one heeds a proxy of the kubeconfig.
///
/// # Errors
/// Where there is no usable kubeconfig.
pub async fn connect_person(access: &Access) -> anyhow::Result<Client> {
    let mut config = if access.kubeconfig.is_some() || access.context.is_some() {
        let file = match &access.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(file.context("can't read the kubeconfig")?, &options)
            .await
            .context("the kubeconfig is not usable")?
    } else {
        Config::infer().await.context(
            "no way to the API server: neither KUBECONFIG, ~/.kube/config nor a service account is usable; --kubeconfig names a file",
        )?
    };
    config.connect_timeout = Some(LIST_PATIENCE);
    Ok(ClientBuilder::try_from(config).context("can't set up the connection to the API server")?.build())
}

/// The API server answers a page in less than a second; after this long it is taken as gone.
const LIST_PATIENCE: Duration = Duration::from_secs(10);
/// As many as the API server gives at once.
const PAGE: u32 = 500;
/// Agents that are asked at the same time.
const AT_ONCE: usize = 16;
/// The status of a node with 5,000 peers is 3 MB; whatever is longer is no status.
const LONGEST: u64 = 64 << 20;

/// Asks every node's agent; a node that gives no answer within `patience` holds up no other.
///
/// # Errors
/// Where the API server does not answer, or lists no Nodes or pods to this person.
pub async fn ask_all(client: &Client, namespace: &str, patience: Duration) -> anyhow::Result<Overview> {
    // no agent runs on Windows
    let nodes = Api::<Node>::all(client.clone());
    let selected = ListParams::default().labels("kubernetes.io/os!=windows").limit(PAGE);
    let mut names = Vec::new();
    pages(
        selected,
        "Nodes",
        |params| {
            let nodes = nodes.clone();
            async move { nodes.list_metadata(&params).await }
        },
        |node| names.push(node.name_any()),
    )
    .await?;

    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let selected = ListParams::default().labels(AGENT_LABELS).limit(PAGE);
    let mut agents = BTreeMap::<String, Pod>::new();
    pages(
        selected,
        &format!("pods in namespace {namespace}"),
        |params| {
            let pods = pods.clone();
            async move { pods.list(&params).await }
        },
        |pod| {
            let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone()) else { return };
            let better = agents.get(&node).is_none_or(|other| rank(&pod) > rank(other));
            if better {
                agents.insert(node, pod);
            }
        },
    )
    .await?;

    let mut collector = Collector::new(names.clone());
    let mut answers = futures::stream::iter(names)
        .map(|node| {
            let (pods, pod) = (pods.clone(), agents.get(&node));
            async move {
                let answer = match pod {
                    Some(pod) => ask(&pods, pod, patience).await,
                    None => Answer::None(Condition::NoPod, "no pod of the agent".into()),
                };
                (node, answer)
            }
        })
        .buffer_unordered(AT_ONCE);
    while let Some((node, answer)) = answers.next().await {
        collector.take(&node, answer);
    }
    drop(answers);
    Ok(collector.finish())
}

/// Goes through a list page by page.
async fn pages<T, F>(
    mut params: ListParams,
    what: &str,
    list: impl Fn(ListParams) -> F,
    mut take: impl FnMut(T),
) -> anyhow::Result<()>
where
    T: Clone,
    F: Future<Output = Result<kube::core::ObjectList<T>, kube::Error>>,
{
    loop {
        let page = match timeout(LIST_PATIENCE, list(params.clone())).await {
            Err(_) => bail!("the API server does not answer: it gave no list of {what}"),
            Ok(Err(kube::Error::Api(status))) => bail!("the API server lists no {what}: {}", status.message),
            Ok(Err(error)) => bail!("the API server does not answer: {}", chain(&error)),
            Ok(Ok(page)) => page,
        };
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Of several pods on a node (a rollout): one that stays, then one that runs, then the newest.
fn rank(pod: &Pod) -> (bool, bool, Option<String>) {
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string());
    (pod.metadata.deletion_timestamp.is_none(), stopped(pod).is_none(), created)
}

/// Why the agent's container does not run; `None` where it does.
fn stopped(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_ref());
    let container = containers.and_then(|list| list.iter().find(|c| c.name == CONTAINER));
    let state = container.and_then(|c| c.state.as_ref());
    if state.is_some_and(|s| s.running.is_some()) {
        return None;
    }
    let waiting = state.and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.clone());
    let ended = state.and_then(|s| s.terminated.as_ref()).and_then(|t| t.reason.clone());
    let phase = status.and_then(|s| s.phase.clone());
    let why = waiting.or(ended).or(phase).unwrap_or_else(|| "unknown".into());
    Some(format!("its pod {} does not run: {why}", pod.name_any()))
}

const CONTAINER: &str = "agent";
const COMMAND: [&str; 4] = ["/usr/bin/wg-overlay", "status", "--output", "json"];

async fn ask(pods: &Api<Pod>, pod: &Pod, patience: Duration) -> Answer {
    if let Some(why) = stopped(pod) {
        return Answer::None(Condition::NotRunning, why);
    }
    match timeout(patience, exec(pods, &pod.name_any())).await {
        Err(_) => Answer::None(Condition::NoAnswer, format!("no answer within {} s", patience.as_secs())),
        Ok(Ok(status)) => Answer::Status(Box::new(status)),
        Ok(Err(Refusal::Forbidden)) => Answer::None(Condition::Forbidden, "you may not exec there".into()),
        Ok(Err(Refusal::Other(why))) => Answer::None(Condition::NoAnswer, why),
    }
}

enum Refusal {
    Forbidden,
    Other(String),
}

async fn exec(pods: &Api<Pod>, pod: &str) -> Result<Status, Refusal> {
    let params = AttachParams::default().container(CONTAINER).stdin(false).stdout(true).stderr(true);
    let mut process = pods.exec(pod, COMMAND, &params).await.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 403 => Refusal::Forbidden,
        kube::Error::Api(status) => Refusal::Other(first_line(&status.message)),
        other => Refusal::Other(chain(&other)),
    })?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let ended = process.take_status();
    let read = |stream: Option<_>, into| async move {
        // a stream that breaks off shows in what it gave
        if let Some(stream) = stream {
            let _ = tokio::io::AsyncReadExt::take(stream, LONGEST).read_to_end(into).await;
        }
    };
    tokio::join!(read(stdout, &mut out), read(stderr, &mut err));
    // a node that isn't converged ends with 1, and its answer stands all the same
    if let Ok(status) = serde_json::from_slice(&out) {
        return Ok(status);
    }
    let said = first_line(&String::from_utf8_lossy(&err));
    let ended = match ended {
        Some(ended) if said.is_empty() => ended.await.and_then(|s| s.message).unwrap_or_default(),
        _ => said,
    };
    Err(Refusal::Other(match (ended.is_empty(), out.is_empty()) {
        (false, _) => ended,
        (true, true) => "it answered nothing".into(),
        (true, false) => "its answer is not of this version".into(),
    }))
}

/// What a node says may be long.
fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().chars().take(200).collect()
}
