//! What a round needs to know besides Nodes and kernel: the cluster's networks, the pods of an earlier PodCIDR, and
//! what has lost its pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use tokio::task::spawn_blocking;
use tracing::info;
use wg_overlay_cni::{Collection, collect, holders_outside};
use wg_overlay_mesh::{Advertisement, ClusterView, EndpointSpec, ObservedState, annotation};

use super::Reconciler;
use crate::cluster::chain;

impl Reconciler {
    /// Takes over the cluster's networks once they are known; configured pod networks win.
    pub(super) fn note_networks(&mut self) {
        let Some(networks) = self.networks.get() else { return };
        let settings = &mut self.local.settings;
        if self.config.pod_cidrs.is_empty() && settings.cluster_cidrs != networks.pods {
            info!(pods = ?networks.pods, "the cluster's pod networks are kubeadm's");
            settings.cluster_cidrs.clone_from(&networks.pods);
        }
        if !settings.reserved.iter().any(|(_, what)| what == SERVICES) {
            settings.reserved.extend(networks.services.iter().map(|net| (*net, SERVICES.to_owned())));
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

    /// Brings what the bridge's ports let pass up to the pods that are there: some may have been attached while the table
    /// was replaced, and DEL leaves the removal to us.
    pub(super) async fn fill_ports(&mut self) {
        let problem = self.host.fill_ports().await.err().map(|error| chain(&error));
        self.note("ports", problem.into_iter().collect());
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

    /// Tells the host which bridge addresses pods have as their gateway. Where the bridge has none but those it should
    /// have, none of them goes, and nobody need be asked.
    pub(super) fn note_addresses_in_use(&mut self) {
        let wanted = self.mesh.decision().map(|decision| &decision.desired.bridge.addresses);
        let observed = self.host.observed();
        let mut found = observed.bridge.iter().flat_map(|bridge| &bridge.addresses);
        let used = match found.any(|net| wanted.is_none_or(|wanted| !wanted.contains(net))) {
            true => gateways_in_use(&self.config.state_dir, observed),
            false => BTreeSet::new(),
        };
        self.host.set_addresses_in_use(used);
    }

    /// The pods that hold addresses outside these prefixes, by container id and interface.
    pub(super) fn pods_outside(&self, pod_cidrs: &[IpNet]) -> BTreeMap<String, Vec<IpAddr>> {
        let held = holders_outside(&self.config.state_dir, pod_cidrs).unwrap_or_default();
        held.into_iter().map(|r| (r.holder.to_string(), r.addresses)).collect()
    }
}

/// The bridge's addresses that pods have as their gateway: one of an earlier PodCIDR stays while a pod does.
pub fn gateways_in_use(state_dir: &Path, observed: &ObservedState) -> BTreeSet<IpNet> {
    let held = holders_outside(state_dir, &[]).unwrap_or_default();
    let ips: Vec<IpAddr> = held.into_iter().flat_map(|r| r.addresses).collect();
    let addresses = observed.bridge.iter().flat_map(|bridge| bridge.addresses.iter().copied());
    addresses.filter(|net| ips.iter().any(|ip| net.contains(ip))).collect()
}

/// What a reserved prefix is called in a refusal.
const SERVICES: &str = "the cluster's service network";

/// The names that persons wrote as endpoints.
pub fn names(view: &ClusterView) -> BTreeSet<String> {
    let annotated = view.values().filter(|r| r.annotations.contains_key(annotation::ENDPOINT));
    let specs = annotated.filter_map(|r| Advertisement::parse(&r.annotations).ok()?.endpoint);
    specs
        .filter_map(|spec| match spec {
            EndpointSpec::Name(name, _) => Some(name),
            EndpointSpec::Address(..) => None,
        })
        .collect()
}
