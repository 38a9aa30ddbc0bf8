//! What is read of this node before anything is judged. Reads only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use kube::Api;
use tokio::time::timeout;
use wg_overlay_host::{DeviceProgram, Host, HostConfig, Nft, ObservedRules, Scope, udp_port_holder};
use wg_overlay_mesh::{NodeRecord, ObservedState, next_port};

use crate::{
    cluster::{ClusterNetworks, SlimNode, chain, cluster_networks, connect},
    config::Config,
    status::Status,
};

/// Files below a root.
#[derive(Debug, Clone)]
pub struct Files(pub PathBuf);

impl Files {
    /// Where a path of the host is found.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file; `None` where it can't be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read(self.path(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether something is there.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// A setting of the kernel, by its path below /proc/sys.
    pub fn sysctl(&self, path: &str) -> Option<String> {
        self.read(Path::new("/proc/sys").join(path)).map(|text| text.trim().to_owned())
    }

    /// The names of a folder's files that end so.
    pub fn names(&self, folder: &str, end: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.ends_with(end)).collect()
    }
}

/// What the cluster says of this node.
#[derive(Debug, Clone, Default)]
pub struct InCluster {
    /// Its Node; `None` where there is none of its name.
    pub node: Option<NodeRecord>,
    /// kubeadm's networks, where it recorded them.
    pub networks: Option<ClusterNetworks>,
}

/// Everything the checks judge. An `Err` says why it could not be read.
#[derive(Debug)]
pub struct Facts {
    /// The configuration, or the defaults.
    pub config: Config,
    /// Why the defaults stand in for it.
    pub config_problem: Option<String>,
    /// Files as this process sees them: /proc, /sys, /dev, and the paths of the configuration.
    pub own: Files,
    /// The host's own files; `None` in a pod that has none of them at /host.
    pub host_files: Option<Files>,
    /// What the agent says.
    pub agent: Result<Status, String>,
    /// Links, addresses, routes and the WireGuard device.
    pub kernel: Result<ObservedState, String>,
    /// nft's version.
    pub nft: Result<String, String>,
    /// Our table and the host's chains.
    pub rules: Result<ObservedRules, String>,
    /// Who holds the UDP ports of the first and the second device, as far as it can be seen.
    pub port_holders: [Option<String>; 2],
    /// What the API server says.
    pub cluster: Result<InCluster, String>,
    /// The clock.
    pub now: SystemTime,
}

/// The API server answers a read of one object in milliseconds; after this long it is taken as gone.
const PATIENCE: Duration = Duration::from_secs(10);

impl Facts {
    /// Reads them all.
    pub async fn read(config: Config, config_problem: Option<String>, agent: Result<Status, String>) -> Self {
        let nft = version("nft");
        let kernel = match &nft {
            Ok(_) => kernel(&config).await,
            Err(error) => Err(format!("the kernel is read once nft runs: {error}")),
        };
        let rules = match Nft::open(&config.state_dir) {
            Ok(nft) => nft.observe(config.listen_port).map_err(|e| chain(&e)),
            Err(error) => Err(chain(&error)),
        };
        // kubectl exec gives a process the environment of its pod
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let host = Files("/host".into());
        Self {
            own: Files("/".into()),
            host_files: if in_pod {
                Some(host).filter(|f| f.exists("/etc"))
            } else {
                Some(Files("/".into()))
            },
            port_holders: [config.listen_port, next_port(config.listen_port)].map(udp_port_holder),
            cluster: cluster(&config).await,
            now: SystemTime::now(),
            config,
            config_problem,
            agent,
            kernel,
            nft,
            rules,
        }
    }
}

fn version(program: &str) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("{program} does not run: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} fails: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn kernel(config: &Config) -> Result<ObservedState, String> {
    let host = HostConfig {
        state_dir: config.state_dir.clone(),
        listen_port: config.listen_port,
        device_mode: config.device,
        device_socket: config.device_socket.clone(),
        device_program: DeviceProgram::own().map_err(|e| chain(&e))?,
    };
    let mut host = Host::open(host).map_err(|e| chain(&e))?;
    match host.observe(Scope::ALL).await {
        // the rules are a fact of their own
        Ok(_) | Err(wg_overlay_host::HostError::Firewall(_)) => Ok(host.observed().clone()),
        Err(error) => Err(chain(&error)),
    }
}

async fn cluster(config: &Config) -> Result<InCluster, String> {
    let ask = async {
        let client = connect(config.api_server.as_deref()).await.map_err(|e| format!("{e:#}"))?;
        let node = Api::<SlimNode>::all(client.clone()).get_opt(&config.node_name).await;
        let node = node.map_err(|e| chain(&e))?.map(|node| node.record);
        // kubeadm's ConfigMap is one source of several
        let networks = cluster_networks(&client).await.unwrap_or_default();
        Ok(InCluster { node, networks })
    };
    timeout(PATIENCE, ask).await.unwrap_or_else(|_| Err("it gives no answer within 10 s".into()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use wg_overlay_mesh::{Implementation, ObservedDevice, ObservedNext, UnderlayLink, UnderlayRoute};

    use super::*;

    /// A node on which nothing is seen, with an empty folder for its files.
    pub fn facts() -> (Facts, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files(folder.path().to_owned());
        let flags = BTreeMap::from([("nodeName", "n1".to_owned())]);
        let config = crate::config::load(Path::new("/nonexistent"), false, |_| None, flags).unwrap();
        let facts = Facts {
            config,
            config_problem: None,
            own: files.clone(),
            host_files: Some(files),
            agent: Ok(Status::new("n1", true)),
            kernel: Ok(ObservedState::default()),
            nft: Ok("nftables v1.1.3".into()),
            rules: Ok(ObservedRules::default()),
            port_holders: [None, None],
            cluster: Ok(InCluster::default()),
            now: SystemTime::now(),
        };
        (facts, folder)
    }

    /// Writes a file of that node.
    pub fn put(facts: &Facts, path: &str, text: &str) {
        let path = facts.own.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Adds an underlay link with a default route.
    pub fn link(facts: &mut Facts, index: u32, name: &str, mtu: u32) {
        let Ok(kernel) = &mut facts.kernel else { return };
        kernel
            .underlay
            .links
            .insert(index, UnderlayLink { name: name.into(), mtu, addresses: BTreeSet::new() });
        let route = UnderlayRoute { destination: "0.0.0.0/0".parse().unwrap(), link: index, metric: index };
        kernel.underlay.routes.push(route);
    }

    /// Adds the first device.
    pub fn device(facts: &mut Facts, mtu: u32) {
        let Ok(kernel) = &mut facts.kernel else { return };
        kernel.device = Some(ObservedDevice {
            implementation: Implementation::Kernel,
            marked: true,
            up: true,
            mtu,
            addresses: BTreeSet::new(),
            public_key: None,
            listen_port: 51820,
        });
    }

    /// Adds the second device, where the first one is there.
    pub fn second_device(facts: &mut Facts) {
        let Ok(kernel) = &mut facts.kernel else { return };
        let device = kernel.device.clone().map(|first| ObservedDevice { listen_port: 51821, ..first });
        kernel.next = device.map(|device| ObservedNext { device, peers: BTreeMap::new() });
    }
}
