//! The in-memory Node API as a process: `node-api --listen [::]:6443 --socket /path`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use wg_overlay_e2e::api::NodeApi;

/// Serves Node objects from memory, over plain HTTP, for tests and the demo.
#[derive(Parser)]
struct Flags {
    /// Where clients reach it; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
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
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, api.router()).await.context("serve")
}
