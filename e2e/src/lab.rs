//! The lab: nodes of a cluster as namespaces on one host, joined by an underlay.
//!
//! ```text
//!                 control: node-api, 192.0.2.1 and 2001:db8::1 as "the outside"
//!                    │ 172.30.0.1, fd00:30::1
//!   switch: br0 ─────┼──────────────┬──────────────┐        captures sit on br0's ports
//!                    │ n1           │ n2           │ n3
//!                 eth0 .11       eth0 .12       eth0 .13    each node: own network, mount and
//!                 pods 10.244.1  pods 10.244.2  pods …      UTS namespace, its pods within
//! ```
//!
//! It owns namespaces, processes and one folder under the system's temporary folder, and removes
//! all of them when it is dropped; what a killed run left is removed at the next start. It leaves
//! the host's own network, `/run`, `/etc`, `/opt` and `/var/lib` as they are.

mod agent;
mod authority;
mod capture;
mod client;
mod cni;
mod command;
mod container;
mod leftover;
mod namespace;
mod node;
mod pod;
mod prober;
mod sites;
mod steps;
mod wait;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

pub use authority::{Authority, TLS_PORT};
pub use capture::{Capture, CaptureConfig, CaptureReport, Count, LinkReport};
pub use client::ApiClient;
pub use cni::{Attachment, CniError};
pub use command::{helper, product, run, run_with_input};
pub use namespace::{Namespace, Network};
pub use node::{Families, Node, NodeConfig};
pub use pod::Pod;
pub use prober::{Pace, PairReport, Prober};
pub use steps::Steps;
pub use wait::{eventually, eventually_every};

/// The cluster's pod prefixes; node N has 10.244.N.0/24 and fd00:244:0:N::/64.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/56"];
/// Where node-api listens on `control`.
pub const API_PORT: u16 = 6443;
/// Addresses of `control` outside of every cluster prefix, reached through the default route.
pub const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// What a lab begins with.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// How many nodes; more come by `Lab::add_node`.
    pub nodes: u8,
    /// What every node begins with.
    pub node: NodeConfig,
    /// Keys of the agent's configuration besides `nodeName` and `podCIDRs`.
    pub agent: Map<String, Value>,
    /// The tunnel's port, by which captures know WireGuard.
    pub tunnel_port: u16,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self { nodes: 2, node: NodeConfig::default(), agent: Map::new(), tunnel_port: 51820 }
    }
}

/// A running lab. Its drop ends every process in it and removes its folder.
pub struct Lab {
    config: LabConfig,
    nodes: Vec<Node>,
    api: ApiClient,
    control: Namespace,
    switch: Namespace,
    // Dropped last: the processes above have open files in it.
    folder: leftover::Folder,
}

impl Lab {
    /// Builds the underlay, starts node-api and adds the nodes.
    ///
    /// # Errors
    /// A program that is missing, a kernel without bridge or veth, no root.
    pub fn new(config: LabConfig) -> Result<Self> {
        leftover::remove();
        let folder = leftover::Folder::new()?;
        fs::create_dir(folder.path().join("logs")).context("make the folder for logs")?;
        let switch = Namespace::start("switch", &folder)?;
        switch.ip(&["link add br0 type bridge mcast_snooping 0".into(), "link set br0 up".into()])?;
        let control = Namespace::start("control", &folder)?;
        node::plug(&control, &switch, &NodeConfig::default(), 1)?;
        control.ip(&OUTSIDE.map(|address| format!("addr add {address} dev lo")))?;
        let socket = folder.path().join("api.sock");
        let mut api = control.command(helper("node-api")?);
        api.arg("--listen").arg(format!("[::]:{API_PORT}")).arg("--socket").arg(&socket);
        authority::listen_by_tls(&mut api, folder.path());
        control.spawn(&mut api, &folder.path().join("logs/node-api.log"))?;
        let api = ApiClient::new(socket);
        api.await_ready()?;
        let mut lab = Self { config, nodes: Vec::new(), api, control, switch, folder };
        for _ in 0..lab.config.nodes {
            let node = lab.config.node.clone();
            lab.add_node(node)?;
        }
        Ok(lab)
    }

    /// Runs a test in a fresh lab, and shows every log if it fails. With `DEMO_KEEP` set, a
    /// failing lab stays up for a look around until a line is read from stdin.
    ///
    /// # Errors
    /// The lab's own or the test's.
    pub fn test(config: LabConfig, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut lab = Self::new(config)?;
        let result = body(&mut lab);
        if result.is_err() {
            lab.show_logs();
            if std::env::var_os("DEMO_KEEP").is_some() {
                eprintln!("{result:#?}\n{}\nPress enter to remove the lab.", lab.look_around());
                std::io::stdin().read_line(&mut String::new())?;
            }
        }
        result
    }

    /// Adds the next node and, if its configuration says so, its Node object.
    ///
    /// # Errors
    /// As `new`.
    pub fn add_node(&mut self, config: NodeConfig) -> Result<&Node> {
        let number = u8::try_from(self.nodes.len() + 1).context("more than 255 nodes")?;
        let mut agent = self.config.agent.clone();
        agent.entry("podCIDRs").or_insert_with(|| json!(POD_CIDRS));
        let node = Node::start(number, config, agent, &self.switch, &self.folder)?;
        if node.config().register {
            self.api.create("/api/v1/nodes", &node.object())?;
        }
        self.nodes.push(node);
        self.nodes.last().context("no node")
    }

    /// Node `number`, from 1 on.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, number: usize) -> Result<&Node> {
        let node = number.checked_sub(1).and_then(|index| self.nodes.get(index));
        node.with_context(|| format!("the lab has nodes 1 to {}, not {number}", self.nodes.len()))
    }

    /// Gives a node other underlay addresses, on its link and in its Node object.
    ///
    /// # Errors
    /// There is no such node.
    pub fn readdress(&self, number: usize, host: u8) -> Result<()> {
        let node = self.node(number)?;
        node.readdress(host)?;
        self.api.patch_status(node.name(), &json!({ "status": node.status() })).map(drop)
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The Node API by its own socket: it meets no faults and needs no network.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        &self.api
    }

    /// The namespace that holds node-api and stands for the outside.
    #[must_use]
    pub fn control(&self) -> &Namespace {
        &self.control
    }

    /// Starts to count what every node sends on its underlay link.
    ///
    /// # Errors
    /// nft or tcpdump fails.
    pub fn capture(&self) -> Result<Capture> {
        let config = CaptureConfig {
            switch: self.switch.network(),
            control: self.control.network(),
            control_device: "eth0".to_owned(),
            control_link: "control".to_owned(),
            links: self.links(),
            tunnel_port: self.config.tunnel_port,
        };
        Capture::start(config, self.folder())
    }

    /// The lab's folder: logs, sockets, captures.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to enter each namespace by hand.
    #[must_use]
    pub fn look_around(&self) -> String {
        let nodes = self.nodes.iter().map(Node::namespace);
        let mut text = format!("logs: {}\n", self.folder().join("logs").display());
        for namespace in [&self.switch, &self.control].into_iter().chain(nodes) {
            text.push_str(&format!("{:8} {}\n", namespace.name(), namespace.enter_line()));
        }
        text
    }

    /// Prints every log's last lines, and what each node's kernel says of its links, peers and drops.
    pub fn show_logs(&self) {
        let logs = fs::read_dir(self.folder().join("logs")).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> = logs.map(|entry| entry.path()).collect();
        logs.extend(self.nodes.iter().map(|node| node.path("/run/wg-overlay/cni.log")));
        logs.sort();
        for log in logs {
            let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default();
            eprintln!("--- {} ({} lines)\n{}", log.display(), lines.len(), tail.join("\n"));
        }
        for node in &self.nodes {
            for look in ["ip -s link", "ip neigh", "ip -6 neigh", "wg show all", "nft list counters"] {
                let shown = node.exec("sh", ["-c", look]).unwrap_or_else(|error| format!("{error:#}"));
                eprintln!("--- {}: {look}\n{shown}", node.name());
            }
        }
    }

    fn links(&self) -> Vec<String> {
        let nodes = self.nodes.iter().filter(|node| node.is_up()).map(|node| node.name().to_owned());
        std::iter::once("control".to_owned()).chain(nodes).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // Pods and captures may still hold their namespaces.
        self.nodes.iter().for_each(Node::power_off);
        self.control.end();
        self.switch.end();
    }
}
