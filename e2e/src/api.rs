//! A small in-memory server of the Kubernetes API: as much of it as the agent uses, over plain
//! HTTP and by TLS, with the semantics an unchanged client relies on and faults on demand.
//!
//! It owns objects and their history. It knows nothing of the lab, and it checks nobody's rights,
//! but for a token where a test demands one: a real kube-apiserver does that elsewhere.
//!
//! | module | what it owns |
//! |---|---|
//! | `store` | objects, resource versions, history, snapshots of paged lists |
//! | `patch` | the patch formats, and what a patch may change |
//! | `watch` | the watch stream: bookmarks, streaming lists, 410 |
//! | `fault` | what goes wrong on purpose |
//! | `http` | paths, queries, status objects |
//! | `tls` | the same, encrypted, with a certificate that changes |

mod fault;
mod http;
mod patch;
mod store;
mod tls;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;

use fault::Faults;
use store::Store;

pub use tls::TlsListener;

/// A server's state: clones share it.
#[derive(Clone)]
pub struct NodeApi {
    inner: Arc<Inner>,
}

struct Inner {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<serde_json::Value>>,
    /// The newest resource version; watches wait on it.
    changed: tokio::sync::watch::Sender<u64>,
    /// Counts the demands to cut every open watch.
    cuts: tokio::sync::watch::Sender<u64>,
    bookmark_interval: Duration,
}

impl NodeApi {
    /// An empty server whose watches, where the client allows bookmarks, send one each
    /// `bookmark_interval` (kube-apiserver: about a minute).
    #[must_use]
    pub fn new(bookmark_interval: Duration) -> Self {
        let inner = Inner {
            store: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            changed: tokio::sync::watch::Sender::new(0),
            cuts: tokio::sync::watch::Sender::new(0),
            bookmark_interval,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The HTTP service for the clients under test: it meets the faults that are in force.
    pub fn router(&self) -> Router {
        http::control::client_router(self.clone())
    }

    /// The HTTP service for the test's own socket: it meets no faults, and takes them.
    pub fn control_router(&self) -> Router {
        http::control::control_router(self.clone())
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.inner.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.inner.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the watches that the store has changed.
    fn notify(&self) {
        let version = self.store().version();
        self.inner.changed.send_replace(version);
    }
}
