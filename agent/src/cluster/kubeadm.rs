//! The cluster's networks as kubeadm recorded them.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{Nodes, chain};

/// The networks of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterNetworks {
    /// The pod networks.
    pub pods: BTreeSet<IpNet>,
    /// The service networks.
    pub services: BTreeSet<IpNet>,
}

#[derive(Deserialize)]
struct ClusterConfiguration {
    #[serde(default)]
    networking: Networking,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Networking {
    #[serde(default)]
    pod_subnet: String,
    #[serde(default)]
    service_subnet: String,
}

/// Reads ConfigMap kube-system/kubeadm-config; `None` where the cluster has none or it isn't readable as such.
///
/// # Errors
/// What the API server answers, other than that there is none or that it may not be read.
pub async fn cluster_networks(client: &Client) -> Result<Option<ClusterNetworks>, kube::Error> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    match api.get_opt("kubeadm-config").await {
        Ok(map) => Ok(map
            .and_then(|m| m.data)
            .and_then(|d| d.get("ClusterConfiguration").cloned())
            .and_then(|text| parse(&text))),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks until the cluster has answered with its networks, and wakes the reconciler then. Where there are none to be
/// found, it goes on asking once a minute: kubeadm may come later.
pub fn learn_networks(client: Client, nodes: Nodes) -> Arc<OnceLock<ClusterNetworks>> {
    let learned = Arc::new(OnceLock::new());
    let answer = learned.clone();
    tokio::spawn(async move {
        let mut told = false;
        loop {
            match timeout(PATIENCE, cluster_networks(&client)).await {
                Ok(Ok(Some(networks))) => {
                    // it is set here only, and once
                    let _ = answer.set(networks);
                    return nodes.wake();
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) if !told => {
                    told = true;
                    warn!(error = %chain(&error), "can't read ConfigMap kube-system/kubeadm-config; it is tried again");
                }
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(INTERVAL).await;
        }
    });
    learned
}

/// The API server answers a read of one object in milliseconds; after this long it is taken as gone.
const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_secs(60);

fn parse(text: &str) -> Option<ClusterNetworks> {
    let configuration: ClusterConfiguration = serde_saphyr::from_str(text).ok()?;
    let nets = |list: &str| -> Option<BTreeSet<IpNet>> {
        let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| part.parse::<IpNet>().ok().map(|n| n.trunc())).collect()
    };
    Some(ClusterNetworks {
        pods: nets(&configuration.networking.pod_subnet)?,
        services: nets(&configuration.networking.service_subnet)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_networks_are_read() {
        let text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16,fd00:244::/56\n  serviceSubnet: 10.96.0.0/12\n";
        let networks = parse(text).unwrap();
        assert_eq!((networks.pods.len(), networks.services.len()), (2, 1));
    }

    #[test]
    fn what_is_no_configuration_is_none() {
        for text in ["", "[", "networking: 5", "networking: {podSubnet: nonsense}"] {
            assert!(parse(text).is_none_or(|n| n.pods.is_empty()), "{text}");
        }
    }
}
