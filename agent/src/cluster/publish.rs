//! What this node says of itself: annotations, and that its network works; a patch on `nodes/status`, only where it
//! differs.
//!
//! A task of its own, so that an API server that doesn't answer never holds up the kernel's work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use wg_overlay_mesh::{Advertisement, Cluster, annotation};

use super::{NetworkCondition, Nodes, SlimNode, chain, node::NETWORK_UNAVAILABLE};

/// The API server answers a patch in milliseconds; after this long it is taken as gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first wait after a failure; it doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// How long what was written may take to come back by the watch. For so long it isn't written again to a Node that is seen
/// as it was before.
const ECHO: Duration = Duration::from_secs(5);

/// The reason by which our condition is known as ours.
const REASON: &str = "WgOverlayIsUp";

/// The annotations of ours that a Node need not have.
const PASSING: [&str; 2] = [annotation::NEXT_PUBLIC_KEY, annotation::ROTATION];

/// What is to be published.
#[derive(Clone)]
struct Wanted {
    advertisement: Advertisement,
    /// Whether the network of this node carries pods' traffic.
    ready: bool,
}

/// The reconciler's end of the publishing task.
pub struct Publisher {
    wanted: watch::Sender<Option<Wanted>>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Publisher {
    /// Starts the task.
    pub fn start(client: Client, nodes: Nodes, node: String, legacy: bool) -> Self {
        let (wanted, mut changed) = watch::channel(None);
        let problem = Arc::new(Mutex::new(None));
        let mut task = Task { client, nodes, node, legacy, problem: problem.clone(), written: None };
        tokio::spawn(async move {
            let mut wait = FIRST_RETRY;
            while changed.changed().await.is_ok() {
                // a newer advertisement replaces one that could not be published yet
                loop {
                    let wanted = changed.borrow_and_update().clone();
                    if task.publish(wanted).await {
                        wait = FIRST_RETRY;
                        break;
                    }
                    sleep(wait).await;
                    wait = wait.saturating_mul(2).min(LAST_RETRY);
                }
            }
        });
        Self { wanted, problem }
    }

    /// Says what is to be published; it is compared with the Node again at each call. A node that was ready once stays
    /// so for the scheduler: a fault of the agent is no reason to keep pods off.
    pub fn want(&self, advertisement: &Advertisement, ready: bool) {
        self.wanted.send_replace(Some(Wanted { advertisement: advertisement.clone(), ready }));
    }

    /// What keeps it from being published, if something does.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Task {
    client: Client,
    nodes: Nodes,
    node: String,
    legacy: bool,
    problem: Arc<Mutex<Option<String>>>,
    /// When was written last, and to a Node that was seen how.
    written: Option<(Instant, Difference)>,
}

/// A Node's annotations as they are seen, and what is to become of them and of its condition.
#[derive(PartialEq)]
struct Difference {
    found: BTreeMap<String, String>,
    annotations: BTreeMap<String, Value>,
    up: bool,
}

impl Task {
    /// Returns whether the Node says what it should.
    async fn publish(&mut self, wanted: Option<Wanted>) -> bool {
        let Some(Wanted { advertisement, ready }) = wanted else { return true };
        let wanted = advertisement.annotations(self.legacy);
        let found = self.nodes.read(|view| Some(view?.record(&self.node)?.into_owned().annotations));
        // without a Node there is nothing to write on; its coming wakes the reconciler, and that this task
        let Some(found) = found else { return true };
        let gone = PASSING.iter().filter(|name| found.contains_key(**name) && !wanted.contains_key(**name));
        let gone: Vec<_> = gone.map(|name| ((*name).to_owned(), Value::Null)).collect();
        let annotations: BTreeMap<_, _> = wanted
            .into_iter()
            .filter(|(name, value)| found.get(name) != Some(value))
            .map(|(name, value)| (name, Value::String(value)))
            .chain(gone)
            .collect();
        let up = ready && is_due(self.nodes.network().as_ref());
        let difference = Difference { found, annotations, up };
        let problem = if difference.annotations.is_empty() && !up {
            None
        } else if self.written.as_ref().is_some_and(|(at, last)| at.elapsed() < ECHO && *last == difference) {
            return false;
        } else {
            let conditions = if up { vec![json!(condition())] } else { vec![] };
            let annotations = &difference.annotations;
            match timeout(PATIENCE, patch(&self.client, &self.node, json!(annotations), conditions)).await {
                Ok(Ok(())) => {
                    info!(node = self.node, annotations = ?annotations.keys(), up, "published");
                    self.written = Some((Instant::now(), difference));
                    None
                }
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some("the API server does not answer".to_owned()),
            }
        };
        let problem = problem.map(|text| format!("can't publish on Node {}: {text}", self.node));
        let mut last = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = problem.as_ref().filter(|text| last.as_ref() != Some(*text)) {
            warn!("{text}");
        }
        *last = problem;
        last.is_none()
    }
}

/// Whether our condition is to be written: a cloud's route controller says True for a Node without a route of its own. A
/// False is left to whoever says so.
fn is_due(found: Option<&NetworkCondition>) -> bool {
    found.is_none_or(|condition| condition.status != "False")
}

/// That pods may be scheduled here. It is written only where the status changes, so that this is its transition.
fn condition() -> NodeCondition {
    let now = Some(Time(Timestamp::now()));
    NodeCondition {
        type_: NETWORK_UNAVAILABLE.into(),
        status: "False".into(),
        reason: Some(REASON.into()),
        message: Some("wg-overlay carries pod traffic".into()),
        last_heartbeat_time: now.clone(),
        last_transition_time: now,
    }
}

/// Removes what the agent wrote from its Node, and looks again: a last patch of the agent may have been under way. What a
/// person or another controller wrote stays. Returns whether there was anything.
///
/// # Errors
/// What the API server answers; a Node that is gone is none.
pub async fn withdraw(client: &Client, node: &str, legacy: bool) -> Result<bool, kube::Error> {
    let mut names =
        vec![annotation::PUBLIC_KEY, annotation::OVERLAY_IPS, annotation::LISTEN_PORT, annotation::MTU];
    names.extend(PASSING);
    if legacy {
        names.extend([annotation::LEGACY_PUBLIC_KEY, annotation::LEGACY_OVERLAY_IP]);
    }
    let mut found = false;
    loop {
        let Some(now) = Api::<SlimNode>::all(client.clone()).get_opt(node).await? else { return Ok(found) };
        let held = names.iter().filter(|name| now.record.annotations.contains_key(**name));
        let gone: BTreeMap<_, _> = held.map(|name| (*name, Value::Null)).collect();
        let ours = now.network.is_some_and(|condition| condition.reason == REASON);
        if gone.is_empty() && !ours {
            return Ok(found);
        }
        found = true;
        let delete = json!({ "$patch": "delete", "type": NETWORK_UNAVAILABLE });
        patch(client, node, json!(gone), if ours { vec![delete] } else { vec![] }).await?;
    }
}

/// A strategic merge patch: it merges conditions by their type, and leaves the others alone.
async fn patch(
    client: &Client,
    node: &str,
    annotations: Value,
    conditions: Vec<Value>,
) -> Result<(), kube::Error> {
    let mut patch = json!({ "metadata": { "annotations": annotations } });
    if let Some(patch) = patch.as_object_mut().filter(|_| !conditions.is_empty()) {
        patch.insert("status".into(), json!({ "conditions": conditions }));
    }
    Api::<Node>::all(client.clone())
        .patch_status(node, &PatchParams::default(), &Patch::Strategic(&patch))
        .await?;
    Ok(())
}
