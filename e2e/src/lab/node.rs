//! A node: a machine on the underlay with a Node object and an agent's files.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::cni::Network;
use super::leftover::Folder;
use super::namespace::Namespace;
use super::pod::Pod;

/// Which address families a node has on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// How a node stands on the underlay, and what Kubernetes would know of it.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The underlay's families.
    pub families: Families,
    /// The underlay link's MTU in bytes.
    pub mtu: u32,
    /// The Node's podCIDRs; without: 10.244.N.0/24 and fd00:244:0:N::/64.
    pub pod_cidrs: Option<Vec<String>>,
    /// Whether the lab creates its Node object.
    pub register: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { families: Families::Dual, mtu: 1500, pod_cidrs: None, register: true }
    }
}

/// A node of the lab.
pub struct Node {
    number: u8,
    /// The last part of its underlay addresses.
    host: Cell<u8>,
    config: NodeConfig,
    machine: Rc<Namespace>,
    logs: PathBuf,
    up: Cell<bool>,
    pub(super) agent_config: RefCell<Map<String, Value>>,
    pub(super) agent: Cell<Option<u32>>,
}

impl Node {
    pub(super) fn start(
        number: u8,
        config: NodeConfig,
        agent_config: Map<String, Value>,
        switch: &Namespace,
        folder: &Folder,
    ) -> Result<Self> {
        let machine = Namespace::start(&format!("n{number}"), folder)?;
        let host = number.checked_add(10).context("more than 245 nodes")?;
        plug(&machine, switch, &config, host)?;
        let node = Self {
            number,
            host: Cell::new(host),
            config,
            machine: Rc::new(machine),
            logs: folder.path().join("logs"),
            up: Cell::new(true),
            agent_config: RefCell::new(agent_config),
            agent: Cell::new(None),
        };
        node.agent_config.borrow_mut().insert("nodeName".into(), json!(node.name()));
        fs::write(node.path("/etc/wg-overlay/kubeconfig"), node.kubeconfig())?;
        Ok(node)
    }

    /// `n1`, `n2`, …: the Node's name, the hostname and the switch's port.
    #[must_use]
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// 1, 2, …
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// What it was added with.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Its namespaces.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.machine
    }

    /// Runs a program on it to its end and gives its output.
    ///
    /// # Errors
    /// It fails.
    pub fn exec<I>(&self, program: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.machine.exec(program, args)
    }

    /// A path on the node as the test sees it.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.machine.path(inside)
    }

    /// Where a program of this node logs to.
    #[must_use]
    pub fn log(&self, program: &str) -> PathBuf {
        self.logs.join(format!("{}-{program}.log", self.name()))
    }

    /// Its underlay addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        addresses(self.config.families, self.host.get()).into_iter().map(|(address, _)| address).collect()
    }

    /// Its podCIDRs.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<String> {
        let number = self.number;
        let own = || vec![format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")];
        self.config.pod_cidrs.clone().unwrap_or_else(own)
    }

    /// The Node object as a cluster would hold it.
    #[must_use]
    pub fn object(&self) -> Value {
        let cidrs = self.pod_cidrs();
        let mut spec = json!({ "podCIDRs": cidrs });
        if let (Some(first), Some(spec)) = (cidrs.first(), spec.as_object_mut()) {
            spec.insert("podCIDR".into(), json!(first));
        }
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": self.name(), "labels": { "kubernetes.io/hostname": self.name(), "kubernetes.io/os": "linux" } },
            "spec": spec,
            "status": self.status(),
        })
    }

    /// The status with the present addresses.
    #[must_use]
    pub fn status(&self) -> Value {
        let internal = self.addresses().into_iter().map(|ip| json!({ "type": "InternalIP", "address": ip }));
        let all: Vec<Value> =
            internal.chain([json!({ "type": "Hostname", "address": self.name() })]).collect();
        json!({ "addresses": all })
    }

    /// Gives the underlay link other addresses: `host` is their last part. The Node object is not
    /// told: `Lab::readdress` does both.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn readdress(&self, host: u8) -> Result<()> {
        // The old ones first: a second IPv4 address of one subnet would go with the first.
        let mut commands = address_commands("del", self.config.families, self.host.replace(host));
        commands.extend(address_commands("add", self.config.families, host));
        commands.extend(default_routes(self.config.families));
        self.machine.ip(&commands)
    }

    /// Attaches a pod as a container runtime does: by the conflist in `/etc/cni/net.d`.
    ///
    /// # Errors
    /// There is no conflist, or the plugin refuses (`CniError`).
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.add_pod_with(name, json!({}))
    }

    /// Likewise with the runtime's capability arguments, such as `portMappings`.
    ///
    /// # Errors
    /// As `add_pod`.
    pub fn add_pod_with(&self, name: &str, runtime_config: Value) -> Result<Pod> {
        Pod::add(self.machine.clone(), name, runtime_config)
    }

    /// GC: collects what belongs to none of these pods.
    ///
    /// # Errors
    /// As `add_pod`.
    pub fn collect_pods(&self, valid: &[&Pod]) -> Result<()> {
        let valid: Vec<_> = valid.iter().map(|pod| pod.attachment()).collect();
        Network::load(self.machine.clone())?.collect(&valid)
    }

    /// STATUS: whether the network is ready for ADD.
    ///
    /// # Errors
    /// As `add_pod`.
    pub fn network_status(&self) -> Result<()> {
        Network::load(self.machine.clone())?.status()
    }

    /// Ends all that runs on it and takes its link away, as a power cut does. The Node object
    /// stays.
    pub fn power_off(&self) {
        self.up.set(false);
        self.agent.set(None);
        self.machine.end();
    }

    /// Whether it has not been powered off.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.get()
    }

    fn kubeconfig(&self) -> String {
        let server = match self.config.families {
            Families::V6 => "http://[fd00:30::1]",
            Families::Dual | Families::V4 => "http://172.30.0.1",
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": { "server": format!("{server}:{}", super::API_PORT) } }],
            "users": [{ "name": "lab", "user": {} }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        });
        config.to_string()
    }
}

/// Joins a machine to the switch: port NAME there, eth0 here. Host 1 is the others' gateway.
pub(super) fn plug(machine: &Namespace, switch: &Namespace, config: &NodeConfig, host: u8) -> Result<()> {
    let (name, pid, mtu) = (machine.name(), machine.pid(), config.mtu);
    switch.ip(&[
        format!("link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid}"),
        format!("link set {name} master br0 up"),
    ])?;
    // While its link-local address is tentative, a link resolves no neighbour for what it forwards.
    machine.set_sysctl("net/ipv6/conf/eth0/accept_dad", "0")?;
    let mut commands = address_commands("add", config.families, host);
    commands.push("link set eth0 up".to_owned());
    if host != 1 {
        commands.extend(default_routes(config.families));
    }
    machine.ip(&commands)
}

fn address_commands(verb: &str, families: Families, host: u8) -> Vec<String> {
    let all = addresses(families, host).into_iter();
    all.map(|(address, length)| format!("addr {verb} {address}/{length} dev eth0 nodad")).collect()
}

fn default_routes(families: Families) -> Vec<String> {
    addresses(families, 1)
        .into_iter()
        .map(|(gateway, _)| format!("route replace default via {gateway}"))
        .collect()
}

/// The underlay's addresses with their prefix lengths.
fn addresses(families: Families, host: u8) -> Vec<(IpAddr, u8)> {
    let v4 = (IpAddr::from([172, 30, 0, host]), 24);
    let v6 = (IpAddr::from([0xfd00, 0x30, 0, 0, 0, 0, 0, u16::from(host)]), 64);
    match families {
        Families::Dual => vec![v4, v6],
        Families::V4 => vec![v4],
        Families::V6 => vec![v6],
    }
}
