//! What an agent reads from a real API server in an hour, beside a client that watches whole Nodes.
//!
//! ```text
//!   agent ── 127.0.0.1 of n1 ── counter ── socket ── kubectl proxy ── kube-apiserver ── etcd
//!                                  watch of Nodes ──┘
//! ```
//! One round of heartbeats is counted, each Node's status written once as its kubelet does; kubelets do so twelve times an
//! hour (KubeletConfiguration: `nodeStatusReportFrequency`, 5 minutes). Leases, which they renew more often, no agent reads.

use std::fs;
use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{ApiClient, eventually, run};

use crate::Options;
use crate::nodes::{self, FIRST, conditions, made_up};
use crate::process::inside;
use crate::report::Findings;
use crate::scale::Agent;

/// Rows by the number of nodes, the agent's own among them.
const SIZES: [(&str, u16); 2] = [("api-1000", 1000), ("api-5000", 5000)];
const BEATS_AN_HOUR: f64 = 12.0;
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the rows of `Group::Api`.
pub fn measure(_options: &Options, findings: &mut Findings) -> Result<()> {
    let lab = nodes::lab(1)?;
    let node = lab.node(1)?;
    let server = Server::start(lab.folder())?;
    let api = ApiClient::new(server.socket.clone());
    eventually(PATIENCE, "the API server answers", || api.get("/version").map(drop))?;
    api.create("/api/v1/nodes", &node.object())?;

    let listener = inside(node.namespace().pid(), || Ok(TcpListener::bind("127.0.0.1:0")?))?;
    let kubeconfig = fs::read_to_string(node.path("/etc/wg-overlay/kubeconfig"))?;
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig)?;
    let field =
        kubeconfig.pointer_mut("/clusters/0/cluster/server").context("no server in the kubeconfig")?;
    *field = json!(format!("http://{}", listener.local_addr()?));
    fs::write(node.path("/etc/wg-overlay/kubeconfig"), kubeconfig.to_string())?;
    let by_agent = count_through(listener, server.socket.clone());

    let mut there = 0;
    for (row, size) in SIZES {
        made_up(size - 1)
            .skip(usize::from(there))
            .try_for_each(|node| api.create("/api/v1/nodes", &node.object()).map(drop))?;
        there = size - 1;
        let agent = Agent::start(&lab, "1h")?;
        let by_watch = watch_nodes(&api, &server.socket)?;
        agent.at_rest()?;
        let before = (by_agent.load(Relaxed), by_watch.load(Relaxed));
        for number in FIRST..FIRST + there {
            // Unlike the ones before: what changes nothing makes no event.
            let beat = json!({ "status": { "conditions": conditions(u32::from(number) + u32::from(size)) } });
            api.patch_status(&nodes::MadeUp::new(number).name(), &beat)?;
        }
        eventually(PATIENCE, "both have read all heartbeats", || quiet(&[&by_agent, &by_watch]))?;
        agent.at_rest()?;
        let hour = |after: u64, before: u64| (after - before) as f64 * BEATS_AN_HOUR / f64::from(1 << 20);
        let ours = hour(by_agent.load(Relaxed), before.0);
        let watch = hour(by_watch.load(Relaxed), before.1);
        ensure!(ours > 0.0 && watch > 0.0, "nothing was read: the agent {ours}, the watch {watch} MiB");
        findings.paired(row, &[ours], "full Node watch", &[watch])?;
    }
    Ok(())
}

/// An API server without nodes, of the cluster's harness; ended when dropped.
struct Server {
    socket: PathBuf,
    proxy: Child,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        run(&mut harness(&["up", "0"])?)?;
        // They would take Nodes without kubelets for dead, and say so in each.
        for service in ["controller-manager", "scheduler"] {
            run(&mut harness(&["stop", service])?)?;
        }
        let socket = folder.join("api.socket");
        let proxy = harness(&["proxy"])?.arg(&socket).spawn().context("start the API server's proxy")?;
        Ok(Self { socket, proxy })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.proxy.kill().and_then(|()| self.proxy.wait());
        if let Err(error) = harness(&["down"]).and_then(|mut down| run(&mut down)) {
            eprintln!("bench: the API server is not down: {error:#}");
        }
    }
}

/// A command of the harness, for a cluster of the bench's own.
fn harness(words: &[&str]) -> Result<Command> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/cluster/cluster");
    let mut command = Command::new(fs::canonicalize(script).context("find the cluster's harness")?);
    command.env("WG_OVERLAY_CLUSTER", "wgb").args(words);
    Ok(command)
}

/// Passes on what connects, and counts what comes back. The threads end with the connections, or with this process.
fn count_through(listener: TcpListener, socket: PathBuf) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let read = count.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let passed = client.and_then(|client| {
                let server = UnixStream::connect(&socket)?;
                let (up, down) = ((client.try_clone()?, server.try_clone()?), (server, client));
                let read = read.clone();
                thread::spawn(move || pass_up(up));
                thread::spawn(move || pass_down(down, &read));
                Ok(())
            });
            if let Err(error) = passed {
                eprintln!("bench: a connection to the API server: {error}");
            }
        }
    });
    count
}

fn pass_up((mut client, mut server): (TcpStream, UnixStream)) {
    let _ended = std::io::copy(&mut client, &mut server);
    let _gone = server.shutdown(Shutdown::Both);
}

fn pass_down((server, mut client): (UnixStream, TcpStream), read: &AtomicU64) {
    let _ended = for_each_read(server, |bytes| {
        read.fetch_add(bytes.len() as u64, Relaxed);
        client.write_all(bytes)
    });
    let _gone = client.shutdown(Shutdown::Both);
}

fn for_each_read(
    mut from: impl Read,
    mut work: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => work(buffer.get(..length).unwrap_or_default())?,
        }
    }
}

/// Watches all Nodes from now on, and counts what comes.
fn watch_nodes(api: &ApiClient, socket: &Path) -> Result<Arc<AtomicU64>> {
    let list = api.get("/api/v1/nodes?limit=1")?;
    let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).context("no version")?;
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "GET /api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion={version} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )?;
    let count = Arc::new(AtomicU64::new(0));
    let read = count.clone();
    thread::spawn(move || {
        for_each_read(stream, |bytes| {
            read.fetch_add(bytes.len() as u64, Relaxed);
            Ok(())
        })
    });
    eventually(PATIENCE, "the watch begins", || {
        ensure!(count.load(Relaxed) > 0, "no answer");
        Ok(())
    })?;
    Ok(count)
}

/// Whether nothing comes for a second.
fn quiet(counts: &[&AtomicU64]) -> Result<()> {
    let read = || counts.iter().map(|count| count.load(Relaxed)).sum::<u64>();
    let before = read();
    // The silence itself is what is waited for.
    thread::sleep(Duration::from_secs(1));
    ensure!(read() == before, "something came");
    Ok(())
}
