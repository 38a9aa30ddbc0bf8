//! A client of the cluster in `cluster/`: kubectl as administrator, programs on its nodes, captures on
//! its underlay, probes between its nodes. It starts no cluster and ends none.

mod pod;
mod prober;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Capture, CaptureConfig, Network, eventually_every, run, run_with_input};

pub use pod::Pod;
pub use prober::Probers;

/// Where the tests put what they create.
pub const NAMESPACE: &str = "wg-overlay-e2e";
/// The switch's port that the deliberate packets come from, and its other end.
const CONTROL: [&str; 2] = ["e2e-control", "e2e-sender"];
const TUNNEL_PORT: u16 = 51820;

/// The running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    script: PathBuf,
    prefix: String,
}

impl Cluster {
    /// The cluster that `WG_OVERLAY_CLUSTER` names, by default `wgo`; none if it does not run.
    #[must_use]
    pub fn find() -> Option<Self> {
        let prefix = std::env::var("WG_OVERLAY_CLUSTER").unwrap_or_else(|_| "wgo".to_owned());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/cluster");
        Path::new("/run/netns").join(format!("{prefix}-sw")).exists().then_some(Self { script, prefix })
    }

    /// The prefix of its namespaces.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.prefix
    }

    /// Runs a command of the harness, such as `restart containerd n1`.
    ///
    /// # Errors
    /// It fails; the error holds what it said.
    pub fn harness(&self, words: &[&str]) -> Result<String> {
        run(Command::new(&self.script).args(words))
    }

    /// Runs a program on a node.
    ///
    /// # Errors
    /// It fails, or the node is down.
    pub fn on(&self, node: &str, words: &[&str]) -> Result<String> {
        self.harness(&[&["in", node], words].concat())
    }

    /// Runs bash on a node.
    ///
    /// # Errors
    /// As `on`.
    pub fn bash(&self, node: &str, script: &str) -> Result<String> {
        self.on(node, &["bash", "-euc", script])
    }

    /// kubectl as administrator, to be started by the caller.
    #[must_use]
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.arg("k").args(words);
        command
    }

    /// Runs kubectl as administrator.
    ///
    /// # Errors
    /// It fails; the error holds what it said.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(words))
    }

    /// Likewise, with a text as its standard input.
    ///
    /// # Errors
    /// As `kubectl`.
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> Result<String> {
        run_with_input(&mut self.kubectl_command(words), input)
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// As `kubectl`.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], words].concat())?;
        serde_json::from_str(&text).context("parse kubectl's JSON")
    }

    /// The items of a list.
    ///
    /// # Errors
    /// As `kubectl`.
    pub fn list(&self, words: &[&str]) -> Result<Vec<Value>> {
        Ok(self.get(words)?.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// `kubectl VERB -f -` with an object.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn send(&self, verb: &str, object: &Value) -> Result<String> {
        self.kubectl_with(&[verb, "-f", "-"], &object.to_string())
    }

    /// The names of all nodes.
    ///
    /// # Errors
    /// As `kubectl`.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let names = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Waits until a check succeeds, looking twice a second.
    ///
    /// # Errors
    /// It never did within so many seconds.
    pub fn eventually<T>(&self, seconds: u64, what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
        eventually_every(Duration::from_millis(500), Duration::from_secs(seconds), what, check)
    }

    /// Waits until a node is Ready.
    ///
    /// # Errors
    /// It is not within five minutes.
    pub fn await_ready(&self, node: &str) -> Result<()> {
        let name = format!("node/{node}");
        self.kubectl(&["wait", "--for=condition=Ready", "--timeout=300s", &name]).map(drop)
    }

    /// Waits until a DaemonSet's pods are of its last change and ready.
    ///
    /// # Errors
    /// They are not within five minutes.
    pub fn await_rollout(&self, namespace: &str, daemon_set: &str) -> Result<()> {
        let name = format!("daemonset/{daemon_set}");
        self.kubectl(&["-n", namespace, "rollout", "status", "--timeout=300s", &name]).map(drop)
    }

    /// The network of a machine.
    #[must_use]
    pub fn network(&self, machine: &str) -> Network {
        Network::named(&format!("{}-{machine}", self.prefix))
    }

    /// Starts to count what every machine sends on the underlay. The deliberate packets come from a
    /// port of their own on the switch: a node of ours would hold them back.
    ///
    /// # Errors
    /// nft or tcpdump fails.
    pub fn capture(&self, folder: &Path) -> Result<Capture> {
        let switch = self.network("sw");
        let [port, sender] = CONTROL;
        // What a killed run left.
        let _none = switch.exec("ip", ["link", "delete", port]);
        for line in [
            format!("link add {port} type veth peer name {sender}"),
            format!("link set {port} master br0 up"),
            format!("link set {sender} up"),
            format!("route add 224.0.0.0/4 dev {sender}"),
        ] {
            switch.exec("ip", line.split(' '))?;
        }
        let shown: Value =
            serde_json::from_str(&switch.exec("ip", ["-j", "link", "show", "master", "br0"])?)?;
        let names = shown.as_array().into_iter().flatten().filter_map(|link| link.get("ifname")?.as_str());
        let links: Vec<String> = names.map(str::to_owned).collect();
        ensure!(links.len() > 2, "the switch has no machines: {links:?}");
        let (control_device, control_link) = (sender.to_owned(), port.to_owned());
        let control = switch.clone();
        let config =
            CaptureConfig { switch, control, control_device, control_link, links, tunnel_port: TUNNEL_PORT };
        Capture::start(config, folder)
    }
}
