//! Kubernetes Events on this node's own Node, for what a person should hear of.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter as Source},
};
use tracing::debug;

/// Sends Events; the API server folds repetitions into one.
pub struct Reporter {
    recorder: Recorder,
    node: ObjectReference,
}

impl Reporter {
    /// A reporter for the Node of this name.
    pub fn new(client: Client, node: &str) -> Self {
        let source = Source { controller: "wg-overlay".into(), instance: Some(node.into()) };
        // Events of cluster objects go to the default namespace, and kubelet uses the name as uid
        let node = ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.into()),
            uid: Some(node.into()),
            ..ObjectReference::default()
        };
        Self { recorder: Recorder::new(client, source), node }
    }

    /// Sends a warning. A failure is logged and nothing else: Events are a courtesy.
    pub async fn warn(&self, reason: &str, note: String) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()), // the API server refuses more than 1024 bytes
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &self.node).await {
            debug!(%error, reason, "the Event was not taken");
        }
    }
}
