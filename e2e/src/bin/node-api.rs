//! The in-memory Node API as a process: `node-api --listen [::]:6443 --socket /path`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::{HeaderValue, Response, header};
use clap::Parser;
use wg_overlay_e2e::api::{NodeApi, TlsListener};

/// Serves Node objects from memory, over plain HTTP and by TLS, for tests and the demo.
#[derive(Parser)]
struct Flags {
    /// Where clients reach it; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where clients reach it by TLS.
    #[arg(long, requires = "tls_identity")]
    tls_listen: Option<SocketAddr>,
    /// The PEM file with the certificate and key for that, read for each connection.
    #[arg(long)]
    tls_identity: Option<PathBuf>,
    /// A Unix socket with the same API that meets no faults, and with /faults and /requests.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// How often watches send a bookmark, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    bookmark_millis: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let api = NodeApi::new(Duration::from_millis(flags.bookmark_millis.max(1)));
    let listener = tokio::net::TcpListener::bind(flags.listen).await;
    let listener = listener.with_context(|| format!("listen on {}", flags.listen))?;
    if let Some(path) = &flags.socket {
        let socket =
            tokio::net::UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        tokio::spawn(axum::serve(socket, api.control_router()).into_future());
    }
    if let (Some(address), Some(identity)) = (flags.tls_listen, flags.tls_identity) {
        let tcp = tokio::net::TcpListener::bind(address).await;
        let tcp = tcp.with_context(|| format!("listen on {address}"))?;
        // one answer a connection: none is left open that has the certificate of before
        let router = api.router().layer(axum::middleware::map_response(closing));
        tokio::spawn(axum::serve(TlsListener::new(tcp, identity), router).into_future());
    }
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, api.router()).await.context("serve")
}

async fn closing<B>(mut answer: Response<B>) -> Response<B> {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}
