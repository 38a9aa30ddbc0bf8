//! A pod of upstream's test image on a node of one's choice.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, NAMESPACE};

/// A running pod. Its drop deletes it and does not wait.
pub struct Pod {
    cluster: Cluster,
    /// Its name in the tests' namespace.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// Its addresses, one of each family.
    pub ips: Vec<String>,
}

impl Pod {
    /// Starts a pod of the image agnhost and waits until it is ready.
    ///
    /// # Errors
    /// It isn't within three minutes.
    pub fn start(cluster: &Cluster, name: &str, node: &str, args: &[&str]) -> Result<Self> {
        let pod = Self::create(cluster, name, node, args)?;
        pod.await_ready()
    }

    /// Creates the pod, whose addresses are not known yet.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn create(cluster: &Cluster, name: &str, node: &str, args: &[&str]) -> Result<Self> {
        create_namespace(cluster)?;
        cluster.send(
            "create",
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": NAMESPACE },
                "spec": {
                    "nodeName": node, "tolerations": [{ "operator": "Exists" }],
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{ "name": "pod", "image": agnhost(cluster)?, "args": args }],
                },
            }),
        )?;
        Ok(Self { cluster: cluster.clone(), name: name.to_owned(), node: node.to_owned(), ips: Vec::new() })
    }

    /// Waits until it is ready and reads its addresses.
    ///
    /// # Errors
    /// It isn't within three minutes.
    pub fn await_ready(mut self) -> Result<Self> {
        let name = format!("pod/{}", self.name);
        let wait = ["-n", NAMESPACE, "wait", "--for=condition=Ready", "--timeout=180s", &name];
        if let Err(error) = self.cluster.kubectl(&wait) {
            let why = self.cluster.kubectl(&["-n", NAMESPACE, "describe", &name]).unwrap_or_default();
            return Err(error.context(why));
        }
        self.ips = addresses(&self.cluster.get(&["-n", NAMESPACE, &name])?);
        ensure!(
            self.ips.len() == 2,
            "{} has the addresses {:?}, not one of each family",
            self.name,
            self.ips
        );
        Ok(self)
    }

    /// Runs bash in the pod through the API server.
    ///
    /// # Errors
    /// It fails.
    pub fn bash(&self, script: &str) -> Result<String> {
        self.cluster.kubectl(&["-n", NAMESPACE, "exec", &self.name, "--", "bash", "-euc", script])
    }

    /// Runs bash in the pod's network with the node's programs.
    ///
    /// # Errors
    /// It fails.
    pub fn bash_in_network(&self, script: &str) -> Result<String> {
        let own = self.ips.first().context("the pod has no address")?;
        let find = format!(
            "for ns in $(ls /run/netns); do ip -n $ns -o address | grep -qF ' {own}/' && break; done;
            exec nsenter --net=/run/netns/$ns bash -euc \"$0\""
        );
        self.cluster.on(&self.node, &["bash", "-euc", &find, script])
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let words = ["-n", NAMESPACE, "delete", "pod", &self.name, "--wait=false", "--ignore-not-found"];
        let _deleted = self.cluster.kubectl(&words);
    }
}

/// A pod's addresses as its status says.
pub(super) fn addresses(pod: &Value) -> Vec<String> {
    let ips = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    ips.filter_map(|entry| entry.get("ip")?.as_str().map(str::to_owned)).collect()
}

pub(super) fn create_namespace(cluster: &Cluster) -> Result<()> {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    cluster.send("apply", &object).map(drop)
}

/// The name under which the nodes have the image: it depends on the Kubernetes version.
fn agnhost(cluster: &Cluster) -> Result<String> {
    let names = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names[*]}"])?;
    let found = names.split_whitespace().find(|name| name.contains("/agnhost:"));
    found.map(str::to_owned).context("no node has the image agnhost")
}
