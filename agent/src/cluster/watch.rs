//! Follows the Nodes: a streaming list where the API server has it, else list and watch; bookmarks, 410 and
//! reconnects are the client library's.

use std::{pin::pin, time::Duration};

use futures::TryStreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tracing::{info, warn};
use wg_overlay_mesh::{ClusterView, NodeRecord, PackedView};

use super::{Nodes, SlimNode, connect};

/// Nodes asked for at once: at 19 KB each, a page of 50 keeps the peak of memory under 1 MB.
const PAGE: u32 = 50;

/// How often a streaming list may be refused before plain lists are used for good.
const REFUSALS: u32 = 2;

/// Follows the Nodes for ever, keeping `nodes` as the API server says.
pub async fn watch(api_server: Option<String>, nodes: Nodes) {
    let mut streaming = true;
    let mut empty = false;
    loop {
        let client = match connect(api_server.as_deref()).await {
            Ok(client) => client,
            Err(error) => {
                warn!("{error:#}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let ended = tokio::select! {
            ended = follow(&client, &nodes, streaming) => ended,
            () = nodes.0.stale.notified() => continue,
        };
        if !matches!(ended, Ended::Empty) {
            empty = false;
        }
        match ended {
            Ended::Empty => {
                if !std::mem::replace(&mut empty, true) {
                    warn!("the API server lists no Node at all: that is not believed, and asked again");
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ended::StreamingRefused => {
                info!("the API server has no streaming lists: plain lists are used");
                streaming = false;
            }
            Ended::Closed => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Before the connection is set up again.
const PAUSE: Duration = Duration::from_secs(1);

enum Ended {
    /// The list held no Node, not even this one. Taken as it is, it would leave this node's own heartbeat as the
    /// only Node known, and every peer would be removed.
    Empty,
    StreamingRefused,
    Closed,
}

async fn follow(client: &Client, nodes: &Nodes, streaming: bool) -> Ended {
    let config = watcher::Config::default().page_size(PAGE);
    let config = if streaming { config.streaming_lists() } else { config };
    let mut stream = pin!(watcher::watcher(Api::<SlimNode>::all(client.clone()), config).default_backoff());
    let mut initial = PackedView::default();
    let mut refused = 0;
    let mut failing = false;
    loop {
        match stream.try_next().await {
            Ok(Some(event)) => {
                if std::mem::take(&mut failing) {
                    info!("the API server answers again");
                }
                if matches!(event, Event::InitDone) && initial.is_empty() {
                    return Ended::Empty;
                }
                take(event, &mut initial, nodes);
            }
            Ok(None) => return Ended::Closed,
            Err(error) => {
                if streaming && is_refusal(&error) {
                    refused += 1;
                    if refused >= REFUSALS {
                        return Ended::StreamingRefused;
                    }
                }
                if !std::mem::replace(&mut failing, true) {
                    warn!(error = %chain(&error), "watching Nodes failed; the kernel stays as it is, and it is tried again");
                }
            }
        }
    }
}

fn take(event: Event<SlimNode>, initial: &mut PackedView, nodes: &Nodes) {
    match event {
        Event::Init => *initial = PackedView::default(),
        Event::InitApply(node) => {
            let name = node.name_any();
            nodes.note_network(&name, node.network);
            initial.insert(&name, &node.record);
        }
        Event::InitDone => {
            let complete = std::mem::take(initial);
            nodes.update(|view| {
                let changed = complete.differences(view.as_ref().unwrap_or(&PackedView::default()));
                *view = Some(complete);
                changed
            });
        }
        Event::Apply(node) => {
            let name = node.name_any();
            nodes.note_network(&name, node.network);
            nodes.update(|view| apply(view, name, &node.record));
        }
        Event::Delete(node) => {
            let name = node.name_any();
            nodes.note_network(&name, None);
            nodes.update(|view| view.as_mut()?.remove(&name).then_some(name));
        }
    }
}

/// A heartbeat changes nothing that is read, and wakes nobody. Gives the name of a Node that did change.
fn apply(view: &mut Option<PackedView>, name: String, record: &NodeRecord) -> Option<String> {
    view.as_mut()?.insert(&name, record).then_some(name)
}

/// Whether the server refuses `sendInitialEvents` (an older one answers 422, one without the gate 400).
fn is_refusal(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::InitialListFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    matches!(status.code, 400 | 422)
}

/// Lists the Nodes once.
///
/// # Errors
/// What the API server answers.
pub async fn list(client: Client) -> Result<ClusterView, kube::Error> {
    let api = Api::<SlimNode>::all(client);
    let mut view = ClusterView::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        view.extend(page.items.into_iter().map(|n| (n.name_any(), n.record)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(view),
        }
    }
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
