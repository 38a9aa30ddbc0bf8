//! What a round needs to know besides Nodes and kernel: the cluster's networks, the pods of an earlier PodCIDR, and
//! what has lost its pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::{info, warn};
use wg_overlay_cni::{Collection, collect, holders_outside};
use wg_overlay_mesh::{Advertisement, EndpointSpec, annotation};

use super::Reconciler;
use crate::cluster::{Nodes, chain, cluster_networks};

/// The API server answers a read of one object in milliseconds; after this long it is taken as gone.
const PATIENCE: Duration = Duration::from_secs(5);

impl Reconciler {
    /// Asks the cluster for its networks until they are known; what is configured wins.
    pub(super) async fn learn_networks(&mut self) {
        let settings = &mut self.local.settings;
        let service = |(_, what): &(IpNet, String)| what == SERVICES;
        if settings.reserved.iter().any(service) {
            return;
        }
        match timeout(PATIENCE, cluster_networks(&self.client)).await {
            Ok(Ok(Some(networks))) => {
                if self.config.pod_cidrs.is_empty() {
                    info!(pods = ?networks.pods, "the cluster's pod networks are kubeadm's");
                    settings.cluster_cidrs = networks.pods;
                }
                settings.reserved.extend(networks.services.into_iter().map(|net| (net, SERVICES.to_owned())));
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                warn!(error = %chain(&error), "can't read ConfigMap kube-system/kubeadm-config")
            }
            Err(_) => warn!("ConfigMap kube-system/kubeadm-config: no answer"),
        }
    }

    /// Frees addresses and links whose pod is gone: most runtimes never call the plugin's GC.
    pub(super) async fn collect(&mut self) {
        let state_dir = self.config.state_dir.clone();
        match spawn_blocking(move || collect(&state_dir, None)).await {
            Ok(Ok(Collection::Done(freed))) if !freed.links.is_empty() || !freed.reservations.is_empty() => {
                let holders: Vec<_> = freed.reservations.iter().map(|r| r.holder.to_string()).collect();
                info!(links = ?freed.links, ?holders, "collected what lost its pod");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.note("collection", vec![chain(&error)]),
            Err(error) => self.note("collection", vec![error.to_string()]),
        }
    }

    /// A connection from an address that is gone hangs for minutes: the watch begins anew.
    pub(super) fn note_own_addresses(&mut self) {
        let links = self.host.observed().underlay.links.values();
        let addresses: BTreeSet<IpNet> = links.flat_map(|link| link.addresses.iter().copied()).collect();
        if self.last.addresses.difference(&addresses).next().is_some() {
            info!("an address of this node is gone: connecting to the API server anew");
            self.nodes.reconnect();
        }
        self.last.addresses = addresses;
    }

    /// A bridge address of an earlier PodCIDR stays while a pod has it as its gateway.
    pub(super) fn note_addresses_in_use(&mut self) {
        let bridge = self.host.observed().bridge.as_ref();
        let addresses: BTreeSet<IpNet> = bridge.map(|b| b.addresses.clone()).unwrap_or_default();
        let held = self.pods_outside(&[]);
        let ips: Vec<IpAddr> = held.into_values().flatten().collect();
        let used = addresses.into_iter().filter(|net| ips.iter().any(|ip| net.contains(ip))).collect();
        self.host.set_addresses_in_use(used);
    }

    /// The pods that hold addresses outside these prefixes, by container id and interface.
    pub(super) fn pods_outside(&self, pod_cidrs: &[IpNet]) -> BTreeMap<String, Vec<IpAddr>> {
        let held = holders_outside(&self.config.state_dir, pod_cidrs).unwrap_or_default();
        held.into_iter().map(|r| (r.holder.to_string(), r.addresses)).collect()
    }
}

/// What a reserved prefix is called in a refusal.
const SERVICES: &str = "the cluster's service network";

/// The names that persons wrote as endpoints.
pub(super) fn names(nodes: &Nodes) -> BTreeSet<String> {
    nodes.read(|view| {
        let records = view.into_iter().flat_map(|v| v.values());
        let annotated = records.filter(|r| r.annotations.contains_key(annotation::ENDPOINT));
        let specs = annotated.filter_map(|r| Advertisement::parse(&r.annotations).ok()?.endpoint);
        specs
            .filter_map(|spec| match spec {
                EndpointSpec::Name(name, _) => Some(name),
                EndpointSpec::Address(..) => None,
            })
            .collect()
    })
}
