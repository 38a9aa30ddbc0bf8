//! A pod: a network namespace under its node's `/run/netns`, attached by the node's plugins.

use std::ffi::OsStr;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::cni::{Attachment, Network};
use super::namespace::Namespace;
use super::run;

/// An attached pod. Its drop does nothing: it ends with `remove`, or with its node.
pub struct Pod {
    name: String,
    machine: Rc<Namespace>,
    attachment: Attachment,
    result: Value,
    ips: Vec<IpAddr>,
}

impl Pod {
    pub(super) fn add(machine: Rc<Namespace>, name: &str, runtime_config: Value) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let attachment = Attachment {
            container_id: format!("{:064x}", COUNT.fetch_add(1, Ordering::Relaxed)),
            netns: format!("/run/netns/{name}"),
            ifname: "eth0".to_owned(),
            pod: name.to_owned(),
            runtime_config,
        };
        machine.exec("ip", ["netns", "add", name])?;
        let network = Network::load(machine.clone())?;
        let result = network.add(&attachment).inspect_err(|_| {
            // As a runtime: a failed ADD is followed by DEL, and its sandbox goes.
            let _ignored = network.delete(&attachment, None);
            let _ignored = machine.exec("ip", ["netns", "del", name]);
        })?;
        let ips = addresses(&result)?;
        let pod = Self { name: name.to_owned(), machine, attachment, result, ips };
        pod.exec("ip", ["link", "set", "lo", "up"])?;
        Ok(pod)
    }

    /// Its name, also its namespace's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        self.machine.name()
    }

    /// What a runtime knows of it.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The result of ADD.
    #[must_use]
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Its addresses, in the result's order.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn ipv4(&self) -> Result<IpAddr> {
        self.ips
            .iter()
            .copied()
            .find(IpAddr::is_ipv4)
            .with_context(|| format!("pod {self} has no IPv4 address"))
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn ipv6(&self) -> Result<IpAddr> {
        self.ips
            .iter()
            .copied()
            .find(IpAddr::is_ipv6)
            .with_context(|| format!("pod {self} has no IPv6 address"))
    }

    /// A command that will run in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.machine.command_in(Some(Path::new(&self.attachment.netns)), program)
    }

    /// Runs a program in it to its end and gives its output.
    ///
    /// # Errors
    /// It fails.
    pub fn exec<I>(&self, program: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        run(self.command(program).args(args)).with_context(|| format!("in pod {self}"))
    }

    /// Starts a program in it whose output goes to a log; gives its process id. It ends with the
    /// node at the latest.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn(&self, command: &mut Command, log: &Path) -> Result<u32> {
        self.machine.spawn(command, log)
    }

    /// One ping, answered within a second.
    ///
    /// # Errors
    /// It was not answered.
    pub fn ping(&self, target: IpAddr) -> Result<()> {
        self.exec("ping", ["-n", "-c1", "-W1", &target.to_string()]).map(drop)
    }

    /// CHECK.
    ///
    /// # Errors
    /// The plugin found a difference (`CniError`).
    pub fn check(&self) -> Result<()> {
        Network::load(self.machine.clone())?.check(&self.attachment, &self.result)
    }

    /// DEL alone, as for a pod whose namespace went with a reboot.
    ///
    /// # Errors
    /// The plugin failed (`CniError`).
    pub fn remove_network(self) -> Result<()> {
        Network::load(self.machine.clone())?.delete(&self.attachment, Some(&self.result))
    }

    /// DEL, and its namespace goes.
    ///
    /// # Errors
    /// The plugin failed (`CniError`).
    pub fn remove(self) -> Result<()> {
        Network::load(self.machine.clone())?.delete(&self.attachment, Some(&self.result))?;
        self.machine.exec("ip", ["netns", "del", &self.name]).map(drop)
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node(), self.name)
    }
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let parsed: Option<Vec<IpAddr>> =
        ips.iter().map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok()).collect();
    match parsed {
        Some(ips) if !ips.is_empty() => Ok(ips),
        _ => bail!("the result of ADD holds no usable address: {result}"),
    }
}
