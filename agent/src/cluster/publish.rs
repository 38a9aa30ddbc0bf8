//! What this node says of itself: a merge patch on `nodes/status`, only where it differs.
//!
//! A task of its own, so that an API server that doesn't answer never holds up the kernel's work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use wg_overlay_mesh::{Advertisement, annotation};

use super::{Nodes, chain};

/// The API server answers a patch in milliseconds; after this long it is taken as gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first wait after a failure; it doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// The reconciler's end of the publishing task.
pub struct Publisher {
    wanted: watch::Sender<Option<Advertisement>>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Publisher {
    /// Starts the task.
    pub fn start(client: Client, nodes: Nodes, node: String, legacy: bool) -> Self {
        let (wanted, mut changed) = watch::channel(None);
        let problem = Arc::new(Mutex::new(None));
        let task = Task { client, nodes, node, legacy, problem: problem.clone() };
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

    /// Says what is to be published; it is compared with the Node's annotations again at each call.
    pub fn want(&self, advertisement: &Advertisement) {
        self.wanted.send_replace(Some(advertisement.clone()));
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
}

impl Task {
    /// Returns whether the Node says what it should.
    async fn publish(&self, wanted: Option<Advertisement>) -> bool {
        let Some(wanted) = wanted.map(|a| a.annotations(self.legacy)) else { return true };
        let found =
            self.nodes.read(|view| view.and_then(|v| v.get(&self.node)).map(|r| r.annotations.clone()));
        // without a Node there is nothing to write on; its coming wakes the reconciler, and that this task
        let Some(found) = found else { return true };
        let differing: BTreeMap<_, _> =
            wanted.into_iter().filter(|(name, value)| found.get(name) != Some(value)).collect();
        let problem = if differing.is_empty() {
            None
        } else {
            match timeout(PATIENCE, patch(&self.client, &self.node, json!(differing))).await {
                Ok(Ok(())) => {
                    info!(node = self.node, annotations = ?differing.keys(), "published");
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

/// Removes what the agent wrote from its Node. What a person wrote stays.
///
/// # Errors
/// What the API server answers.
pub async fn withdraw(client: &Client, node: &str, legacy: bool) -> Result<(), kube::Error> {
    let mut names =
        vec![annotation::PUBLIC_KEY, annotation::OVERLAY_IPS, annotation::LISTEN_PORT, annotation::MTU];
    if legacy {
        names.extend([annotation::LEGACY_PUBLIC_KEY, annotation::LEGACY_OVERLAY_IP]);
    }
    let gone: BTreeMap<_, _> = names.into_iter().map(|name| (name, serde_json::Value::Null)).collect();
    patch(client, node, json!(gone)).await
}

async fn patch(client: &Client, node: &str, annotations: serde_json::Value) -> Result<(), kube::Error> {
    let patch = json!({ "metadata": { "annotations": annotations } });
    Api::<Node>::all(client.clone())
        .patch_status(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}
