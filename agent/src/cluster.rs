//! The Kubernetes side: what the cluster says of its Nodes, and what this node says of itself.

mod events;
mod kubeadm;
mod node;
mod publish;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use kube::{Client, Config};
use tokio::sync::Notify;
use wg_overlay_mesh::ClusterView;

pub use events::Reporter;
pub use kubeadm::cluster_networks;
pub use node::SlimNode;
pub use publish::{publish, withdraw};
pub(crate) use watch::chain;
pub use watch::{list, watch};

/// Connects to the API server: by KUBECONFIG, else `~/.kube/config`, else the pod's service account.
///
/// # Errors
/// Where none of them is there, or what is there is unusable.
pub async fn connect(api_server: Option<&str>) -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context(
        "no way to the API server: neither KUBECONFIG, ~/.kube/config nor a service account is usable",
    )?;
    if let Some(url) = api_server {
        config.cluster_url = url.parse().with_context(|| format!("apiServer: {url} is no URL"))?;
    }
    Client::try_from(config).context("can't set up the connection to the API server")
}

/// The Nodes as last heard of, shared between the watch and the reconciler.
#[derive(Clone, Default)]
pub struct Nodes(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// `None` until the first full list is in.
    view: Mutex<Option<ClusterView>>,
    changed: Notify,
}

impl Nodes {
    /// Reads the view; `None` before the first full list.
    pub fn read<T>(&self, read: impl FnOnce(Option<&ClusterView>) -> T) -> T {
        read(self.0.view.lock().unwrap_or_else(PoisonError::into_inner).as_ref())
    }

    /// Waits until a Node has changed in what matters.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Changes the view; the closure says whether anything that matters changed.
    fn update(&self, change: impl FnOnce(&mut Option<ClusterView>) -> bool) {
        if change(&mut self.0.view.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.0.changed.notify_one();
        }
    }
}
