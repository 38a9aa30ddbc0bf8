//! The watch stream: one JSON line an event, from a resource version or from the present state.
//!
//! It owns the order of events, bookmarks, streaming lists and the ways a watch ends.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::SinkExt as _;
use futures::channel::mpsc;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::NodeApi;
use super::http::{Filter, Resource, status_object};
use super::store::Objects;

/// Where a watch begins.
#[derive(Clone, Copy)]
pub enum Start {
    /// With the present objects as ADDED, or as if there were none; `marked`: a bookmark then ends the initial events.
    Present { marked: bool, empty: bool },
    /// After a resource version.
    After(u64),
}

/// One watch.
pub struct Watch {
    pub resource: &'static Resource,
    pub filter: Filter,
    pub start: Start,
    pub bookmarks: bool,
    pub timeout: Duration,
}

type Lines = mpsc::Sender<Result<Bytes, io::Error>>;

impl Watch {
    /// The body of the answer: it lasts as long as the watch.
    pub fn into_body(self, api: NodeApi) -> Body {
        let (lines, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            // An error means that the client has gone: nothing is left to do.
            let _gone = self.run(&api, lines).await;
        });
        Body::from_stream(stream)
    }

    async fn run(self, api: &NodeApi, mut lines: Lines) -> Result<(), mpsc::SendError> {
        let mut changed = api.inner.changed.subscribe();
        let mut cuts = api.inner.cuts.subscribe();
        let deadline = Instant::now() + self.timeout;
        let period = api.inner.bookmark_interval;
        let mut bookmark = interval_at(Instant::now() + period, period);
        bookmark.set_missed_tick_behavior(MissedTickBehavior::Delay);

        let is_list =
            matches!(self.start, Start::Present { marked: true, .. }) && self.resource.kind == "Node";
        let lagging = if is_list { api.faults().take_lagging_list() } else { None };
        let lags = lagging.is_some();
        let stands_still = || api.faults().silent || lags && api.faults().is_lagging();
        let mut seen = match self.start {
            Start::After(version) => version,
            Start::Present { marked, empty } => {
                let present = lagging.unwrap_or_else(|| {
                    let store = api.store();
                    (store.version(), store.list(&self.resource.collection()))
                });
                self.send_present(present, &mut lines, marked, empty).await?
            }
        };
        loop {
            let silent = stands_still();
            if !silent {
                let (changes, newest) = {
                    let store = api.store();
                    (store.since(&self.resource.collection(), seen), store.version())
                };
                let Some(changes) = changes else {
                    let gone = status_object(410, "Expired", &format!("too old resource version: {seen}"));
                    return lines.send(line("ERROR", &gone)).await;
                };
                for change in changes.iter().filter(|change| self.filter.matches(&change.object)) {
                    lines.send(line(change.kind, &change.object)).await?;
                }
                seen = seen.max(newest);
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = cuts.changed() => {
                    lines.send(Ok(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"No"))).await?;
                    return lines.send(Err(io::Error::other("watch cut on demand"))).await;
                }
                _ = bookmark.tick(), if self.bookmarks && !silent => {
                    lines.send(line("BOOKMARK", &self.bookmark(seen, false))).await?;
                }
                () = sleep_until(deadline), if !silent => return Ok(()),
            }
        }
    }

    /// Sends these objects and gives the version that they stand for.
    async fn send_present(
        &self,
        (version, objects): (u64, Objects),
        lines: &mut Lines,
        marked: bool,
        empty: bool,
    ) -> Result<u64, mpsc::SendError> {
        for object in objects.values().filter(|object| !empty && self.filter.matches(object)) {
            lines.send(line("ADDED", object)).await?;
        }
        if marked {
            lines.send(line("BOOKMARK", &self.bookmark(version, true))).await?;
        }
        Ok(version)
    }

    fn bookmark(&self, version: u64, ends_initial_events: bool) -> Value {
        let mut metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if ends_initial_events && let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("annotations".into(), json!({ "k8s.io/initial-events-end": "true" }));
        }
        let mut object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata,
        });
        if self.resource.kind == "Node"
            && let Some(object) = object.as_object_mut()
        {
            // kube-apiserver sends the empty type, and a typed client may require these fields.
            object.insert("spec".into(), json!({}));
            object.insert("status".into(), json!({}));
        }
        object
    }
}

/// The type stands first, as the API server sends it: a client may rely on that to read the object at once.
fn line(kind: &str, object: &Value) -> Result<Bytes, io::Error> {
    Ok(Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")))
}
