//! Follows the Nodes: a streaming list where the API server has it, else list and watch; bookmarks, 410 and
//! reconnects are the client library's.

use std::{pin::pin, time::Duration};

use futures::TryStreamExt;
use kube::{
    Api, Client, Resource, ResourceExt,
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

/// How many lists may be older than what was seen before one is believed: an API server that lags behind catches up in
/// seconds, one whose store was restored from a backup never.
const OLDER_LISTS: u32 = 10;

/// Follows the Nodes for ever, keeping `nodes` as the API server says.
pub async fn watch(api_server: Option<String>, nodes: Nodes) {
    let mut streaming = true;
    let mut doubted = None;
    let mut seen = Seen::default();
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
            ended = follow(&client, &nodes, &mut seen, streaming) => ended,
            () = nodes.0.stale.notified() => continue,
        };
        let doubt = if let Ended::Doubtful(list) = ended { Some(list) } else { None };
        if doubt != doubted
            && let Some(list) = doubt
        {
            warn!("the API server {list}: that is not believed, and asked again");
        }
        doubted = doubt;
        match ended {
            Ended::Doubtful(_) => tokio::time::sleep(PAUSE).await,
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
    /// The list can't be right. One without any Node, taken as it is, would leave this node's own heartbeat as the
    /// only Node known, and every peer would be removed; an older one would remove who joined since.
    Doubtful(&'static str),
    StreamingRefused,
    Closed,
}

/// How new the Nodes are that were seen. Resource versions of one resource are decimal numbers that grow: etcd's revisions,
/// and by contract from Kubernetes 1.35 on (KEP-5504).
#[derive(Default)]
struct Seen {
    /// The largest of a Node.
    newest: u64,
    /// How many lists in a row were older.
    older: u32,
}

impl Seen {
    /// Whether a list whose newest Node is of this version may be believed.
    fn believes(&mut self, listed: u64) -> bool {
        let older = listed < self.newest && self.older < OLDER_LISTS;
        self.older = if older { self.older + 1 } else { 0 };
        self.newest = if older { self.newest } else { listed };
        !older
    }
}

fn version(node: &SlimNode) -> u64 {
    node.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

async fn follow(client: &Client, nodes: &Nodes, seen: &mut Seen, streaming: bool) -> Ended {
    let config = watcher::Config::default().page_size(PAGE);
    let config = if streaming { config.streaming_lists() } else { config };
    let mut stream = pin!(watcher::watcher(Api::<SlimNode>::all(client.clone()), config).default_backoff());
    let mut initial = PackedView::default();
    let mut listed = 0;
    let mut refused = 0;
    let mut failing = false;
    loop {
        match stream.try_next().await {
            Ok(Some(event)) => {
                if std::mem::take(&mut failing) {
                    info!("the API server answers again");
                }
                match &event {
                    Event::Init => listed = 0,
                    Event::InitApply(node) => listed = listed.max(version(node)),
                    Event::InitDone if initial.is_empty() => {
                        return Ended::Doubtful("lists no Node at all");
                    }
                    Event::InitDone if !seen.believes(listed) => {
                        return Ended::Doubtful("lists Nodes as they were before");
                    }
                    Event::InitDone | Event::Delete(_) => {}
                    Event::Apply(node) => seen.newest = seen.newest.max(version(node)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_list_is_doubted_for_a_while_and_a_newer_one_never() {
        let mut seen = Seen::default();
        assert!(seen.believes(7) && seen.believes(7) && seen.believes(9));
        assert!(!seen.believes(8) && seen.believes(9), "the next one may have caught up");
        for _ in 0..OLDER_LISTS {
            assert!(!seen.believes(8));
        }
        assert!(seen.believes(8) && seen.believes(8), "a store that was restored");
        assert!(!seen.believes(0));
    }
}
