//! The way to the API server, read anew from its files when a request fails: a rotated authority, token or client
//! certificate needs no restart.
//!
//! It stands below the client, so that nobody who holds one has to know of it. The library alone reads a pod's own token
//! and authority once a minute, and of a kubeconfig nothing but a token's file. What is open stays open: a watch goes on
//! over its old connection until that ends.

use std::{
    error::Error,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use axum::http::{Request, Response, StatusCode};
use futures::future::BoxFuture;
use kube::{
    Client, Config,
    client::Body,
    config::{Kubeconfig, NamedCluster},
};
use rustls::CertificateError;
use tokio::sync::Mutex;
use tower::{BoxError, Service};
use tracing::info;

use super::{build, read_config};

/// A service that keeps what it read last until a request fails by it.
#[derive(Clone)]
pub(super) struct Renewing(Arc<Inner>);

struct Inner {
    api_server: Option<String>,
    way: Mutex<Arc<Way>>,
}

/// A client, and where what it is made of was read.
struct Way {
    client: Client,
    /// The file with the certificates of authorities.
    authorities: String,
    /// The file with the token or the client's certificate.
    credentials: String,
}

impl Renewing {
    pub(super) fn new(api_server: Option<&str>, config: Config) -> kube::Result<Self> {
        let way = Mutex::new(Arc::new(Way::new(config)?));
        Ok(Self(Arc::new(Inner { api_server: api_server.map(str::to_owned), way })))
    }

    /// A request that was refused before anything was done is sent once more, by what the files say now.
    async fn send(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let way = self.0.way.lock().await.clone();
        let again = copy(&request);
        match way.send(request).await {
            Ok(answer) => Ok(answer),
            Err(Failure::Other(error)) => {
                self.renew(&way).await?;
                Err(error.into())
            }
            Err(refusal) => {
                let way = self.renew(&way).await?;
                let Some(request) = again else { return Err(refusal.into()) };
                let answer = way.send(request).await?;
                info!(
                    "the API server takes what was read anew of {} and {}",
                    way.authorities, way.credentials
                );
                Ok(answer)
            }
        }
    }

    /// Replaces this way, unless another request has done so meanwhile.
    async fn renew(&self, failed: &Arc<Way>) -> anyhow::Result<Arc<Way>> {
        let mut way = self.0.way.lock().await;
        if Arc::ptr_eq(&way, failed) {
            *way = Arc::new(Way::new(read_config(self.0.api_server.as_deref()).await?)?);
        }
        Ok(way.clone())
    }
}

impl Service<Request<Body>> for Renewing {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

impl Way {
    fn new(config: Config) -> kube::Result<Self> {
        let kubeconfig = || std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".into());
        let authorities = config.root_cert_file.as_ref().map(|path| path.display().to_string());
        let auth = &config.auth_info;
        let credentials = auth.token_file.clone().or_else(|| auth.client_certificate.clone());
        Ok(Self {
            authorities: authorities.or_else(authority_of_kubeconfig).unwrap_or_else(kubeconfig),
            credentials: credentials.unwrap_or_else(kubeconfig),
            client: build(config)?,
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        match self.client.send(request).await {
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                Err(Failure::Credentials(self.credentials.clone()))
            }
            Ok(answer) => Ok(answer),
            Err(error) if is_untrusted(&error) => Err(Failure::Authority(self.authorities.clone(), error)),
            Err(error) => Err(Failure::Other(error)),
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "the API server refuses the credentials in {0} (401 Unauthorized): put valid ones there; they are read again at each try"
    )]
    Credentials(String),
    #[error(
        "the API server's certificate is signed by no authority in {0}: put the cluster's CA certificate there (in a pod it is that of ConfigMap kube-root-ca.crt); it is read again at each try"
    )]
    Authority(String, #[source] kube::Error),
    #[error(transparent)]
    Other(kube::Error),
}

/// The file that the kubeconfig's current context names.
fn authority_of_kubeconfig() -> Option<String> {
    let file = Kubeconfig::read().ok()?;
    let current = file.current_context?;
    let context = file.contexts.into_iter().find(|context| context.name == current)?.context?;
    let is_current = |cluster: &NamedCluster| cluster.name == context.cluster;
    file.clusters.into_iter().find(is_current)?.cluster?.certificate_authority
}

/// The same request; none where its body is a stream.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether the server's certificate is of another authority; one of the same name has signed with another key.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(reason)) = error.downcast_ref() {
        return matches!(reason, CertificateError::UnknownIssuer | CertificateError::BadSignature);
    }
    // the source of an I/O error is that of the error within
    let within = match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|within| within as &(dyn Error + 'static)),
        None => error.source(),
    };
    within.is_some_and(is_untrusted)
}
