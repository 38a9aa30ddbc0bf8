//! The Kubernetes side: what the cluster says of its Nodes, and what this node says of itself.

mod ask;
mod coalescing;
mod events;
mod kubeadm;
mod node;
mod policies;
mod publish;
mod renewing;
mod watch;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{Connect, HttpConnector},
    },
    rt::{TokioExecutor, TokioIo},
};
use kube::{
    Client, Config,
    client::{ClientBuilder, ConfigExt},
};
use tokio::{net::TcpStream, sync::Notify};
use tower::{ServiceBuilder, ServiceExt};
use wg_overlay_mesh::PackedView;

use coalescing::Coalescing;
use renewing::Renewing;

pub use ask::{Access, ask_all, connect_person};
pub use events::Reporter;
pub use kubeadm::{ClusterNetworks, cluster_networks, learn_networks};
pub use node::{NetworkCondition, SlimNode};
pub use policies::{NOT_ENFORCED, look_for_policies};
pub use publish::{Publisher, withdraw};
pub(crate) use watch::chain;
pub use watch::{list, watch};

/// Connects to the API server: by KUBECONFIG, else `~/.kube/config`, else the pod's service account. What they say is read
/// again when a request fails.
///
/// # Errors
/// Where none of them is there, or what is there is unusable.
pub async fn connect(api_server: Option<&str>) -> anyhow::Result<Client> {
    let config = read_config(api_server).await?;
    let namespace = config.default_namespace.clone();
    let service =
        Renewing::new(api_server, config).context("can't set up the connection to the API server")?;
    Ok(ClientBuilder::new(service, namespace).build())
}

/// The host of the API server's URL, from where [`connect`] takes it.
///
/// # Errors
/// The same as there.
pub async fn api_server_host(api_server: Option<&str>) -> anyhow::Result<Option<String>> {
    let url = read_config(api_server).await?.cluster_url;
    Ok(url.host().map(|host| host.trim_matches(['[', ']']).to_owned()))
}

async fn read_config(api_server: Option<&str>) -> anyhow::Result<Config> {
    let mut config = Config::infer().await.context(
        "no way to the API server: neither KUBECONFIG, ~/.kube/config nor a service account is usable",
    )?;
    if let Some(url) = api_server {
        config.cluster_url = url.parse().with_context(|| format!("apiServer: {url} is no URL"))?;
    }
    Ok(config)
}

/// The library's own stack, over connections that notice a peer that is gone: a watch is silent for minutes, and
/// a node's address may change beneath it.
fn build(config: Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(Duration::from_secs(10)));
    tcp.set_keepalive(Some(Duration::from_secs(15)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    let tcp =
        tcp.map_response(|stream: TokioIo<TcpStream>| TokioIo::new(Coalescing::new(stream.into_inner())));
    if config.cluster_url.scheme_str() == Some("https") {
        let https = config.rustls_https_connector_with_connector(tcp)?;
        stack(config, https)
    } else {
        // without TLS there need be no certificates of authorities on the node
        stack(config, tcp)
    }
}

/// How long a connection waits for another request. After an address of this node went, a request on an old connection
/// waits for an answer that can't come; patches are rare, and a new connection takes milliseconds.
const KEPT_IDLE: Duration = Duration::from_secs(1);

fn stack<C>(config: Config, connector: C) -> kube::Result<Client>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(tower::BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(KEPT_IDLE).build(connector));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// The Nodes as last heard of, shared between the watch, the reconciler and the publisher.
#[derive(Clone)]
pub struct Nodes(Arc<Inner>);

struct Inner {
    /// The name of this node's own.
    own: String,
    /// This node's own condition NetworkUnavailable.
    network: Mutex<Option<NetworkCondition>>,
    view: Mutex<View>,
    changed: Notify,
    stale: Notify,
}

/// The Nodes, and what is new of them.
#[derive(Default)]
struct View {
    /// `None` until the first full list is in.
    nodes: Option<PackedView>,
    /// The Nodes that came, went or changed and that nobody has looked at since.
    changed: BTreeSet<String>,
}

impl Nodes {
    /// No Nodes yet; `own` is the name of this node's.
    pub fn new(own: &str) -> Self {
        Self(Arc::new(Inner {
            own: own.to_owned(),
            network: Mutex::default(),
            view: Mutex::default(),
            changed: Notify::new(),
            stale: Notify::new(),
        }))
    }

    /// This node's own condition NetworkUnavailable.
    pub fn network(&self) -> Option<NetworkCondition> {
        self.0.network.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the condition of this Node, if it is this node's own. Somebody else's change wakes the reconciler.
    fn note_network(&self, name: &str, condition: Option<NetworkCondition>) {
        if name != self.0.own {
            return;
        }
        let mut known = self.0.network.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != condition {
            *known = condition;
            self.wake();
        }
    }

    /// Reads the view; `None` before the first full list.
    pub fn read<T>(&self, read: impl FnOnce(Option<&PackedView>) -> T) -> T {
        read(self.view().nodes.as_ref())
    }

    /// Reads the view with the names of those that changed since this was called last; `None` before the first full list.
    pub fn follow<T>(&self, read: impl FnOnce(&PackedView, BTreeSet<String>) -> T) -> Option<T> {
        let mut view = self.view();
        let changed = std::mem::take(&mut view.changed);
        view.nodes.as_ref().map(|nodes| read(nodes, changed))
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.0.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a Node has changed in what matters.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Says that connections made so far are of no use: the node's addresses have changed.
    pub fn reconnect(&self) {
        self.0.stale.notify_one();
    }

    /// Wakes the reconciler as a changed Node does.
    fn wake(&self) {
        self.0.changed.notify_one();
    }

    /// Changes the view; the closure names the Nodes that changed in what matters.
    fn update<C: IntoIterator<Item = String>>(&self, change: impl FnOnce(&mut Option<PackedView>) -> C) {
        let mut view = self.view();
        let changed = change(&mut view.nodes);
        let before = view.changed.len();
        view.changed.extend(changed);
        if view.changed.len() > before {
            self.wake();
        }
    }
}
