//! The kernel of this host: observed into one value, changed by steps.
//!
//! Holds no policy: a step is carried out as it stands. What was read last is kept and follows our own changes.

mod observe;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use wg_overlay_mesh::{DesiredState, Link, ObservedState, PublicKey};

use self::observe::{blocking, firewall, read_routes};
use crate::{
    DeviceMode, DeviceProgram, Events, HostError, Nft, PrivateKey, Scope, cache::Cache, events::OwnPorts,
    netlink::Netlink, sysctl, wireguard,
};

/// How a host is driven.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where state of this boot is kept: the record of the nftables table, the user-space device's log.
    pub state_dir: PathBuf,
    /// The UDP port of WireGuard, which the host's own firewall must let in.
    pub listen_port: u16,
    /// Who implements a device that does not exist yet.
    pub device_mode: DeviceMode,
    /// Where a user-space device is asked for; `None`: its program is started.
    pub device_socket: Option<PathBuf>,
    /// The program that implements it in user space.
    pub device_program: DeviceProgram,
}

/// The kernel of this host, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Host {
    pub(crate) config: HostConfig,
    pub(crate) netlink: Arc<Mutex<Netlink>>,
    pub(crate) nft: Nft,
    pub(crate) private_keys: Vec<PrivateKey>,
    pub(crate) cache: Cache,
    /// What must be read again, because it was never read, or a step failed half-way.
    pub(crate) stale: Scope,
    warnings: Vec<String>,
    /// Why the second device's name is not ours to use.
    foreign: Option<HostError>,
    router_advertised: BTreeSet<String>,
}

impl Host {
    /// Opens the kernel's interfaces. Nothing is read or changed yet.
    ///
    /// # Errors
    /// [`HostError`] where a socket does not open or the `nft` program is missing.
    pub fn open(config: HostConfig) -> Result<Self, HostError> {
        let netlink = Netlink::open().map_err(HostError::Open)?;
        let nft = Nft::open(&config.state_dir).map_err(HostError::Firewall)?;
        Ok(Self {
            config,
            netlink: Arc::new(Mutex::new(netlink)),
            nft,
            private_keys: Vec::new(),
            cache: Cache::default(),
            stale: Scope::ALL,
            warnings: Vec::new(),
            foreign: None,
            router_advertised: BTreeSet::new(),
        })
    }

    /// Others' changes, beginning with this moment. Open it before the first observation.
    ///
    /// # Errors
    /// [`HostError::Open`] where a socket does not open.
    pub fn events(&self) -> Result<Events, HostError> {
        let own = OwnPorts { route: lock(&self.netlink).port(), nftables: self.nft.port() };
        Events::open(own).map_err(HostError::Open)
    }

    /// Reads what the scope names, and what a failed step left uncertain, and gives everything as far as it is known.
    /// The first observation reads everything. Reads only.
    ///
    /// # Errors
    /// [`HostError`]; what could not be read is read at the next call.
    pub async fn observe(&mut self, scope: Scope) -> Result<&ObservedState, HostError> {
        self.stale = self.stale.union(scope);
        if self.stale.network {
            self.observe_links().await?;
        }
        // at once, since both may be long
        let Scope { network, wireguard, .. } = self.stale;
        let routes = async { if network { read_routes().await.map(Some) } else { Ok(None) } };
        let peers = async { if wireguard { self.observe_wireguard().await } else { Ok(()) } };
        let (routes, ()) = tokio::try_join!(routes, peers)?;
        if let Some(routes) = routes {
            self.take_routes(routes);
        }
        self.stale = Scope { network: false, wireguard: false, ..self.stale };
        if self.stale.firewall {
            self.observe_firewall().await?;
            self.stale.firewall = false;
        }
        Ok(&self.cache.state)
    }

    /// What was observed last, with our own changes since.
    pub fn observed(&self) -> &ObservedState {
        &self.cache.state
    }

    /// The peers that changed since this was asked last, by us or others, in anything but traffic and handshakes.
    pub fn take_changed_peers(&mut self) -> BTreeSet<PublicKey> {
        std::mem::take(&mut self.cache.changed)
    }

    /// Remembers what is advertised of the peers that an earlier agent wrote, so that what is advertised next is written though
    /// they have a session.
    pub fn adopt_endpoints(&mut self, desired: &DesiredState) {
        self.cache.adopt_endpoints(desired);
    }

    /// Whether something must be read before the next plan: after a step that failed, or had a side effect.
    pub fn is_stale(&self) -> bool {
        self.stale != Scope::NONE
    }

    /// What could not be seen at the last observation, and the cure, for a person.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.iter().cloned().chain(self.foreign.as_ref().map(ToString::to_string)).collect()
    }

    /// The packets' rules, for the table's counters.
    pub fn nft(&self) -> &Nft {
        &self.nft
    }

    /// Adds what the table on the bridge's ports lacks of the pods that are there, and removes what is left of others.
    ///
    /// # Errors
    /// [`HostError`]; the pods that are in the table already go on.
    pub async fn fill_ports(&self) -> Result<(), HostError> {
        let nft = self.nft.clone();
        firewall(move || nft.fill_ports()).await
    }

    /// Says which addresses of the bridge pods of an earlier PodCIDR still use; the observed state repeats it.
    pub fn set_addresses_in_use(&mut self, addresses: BTreeSet<IpNet>) {
        self.cache.state.addresses_in_use = addresses;
    }

    /// Hands over the private keys of which a step [`wg_overlay_mesh::Step::SetKey`] writes one, in place of those before.
    pub fn set_private_keys(&mut self, keys: Vec<PrivateKey>) {
        self.private_keys = keys;
    }

    /// The private key of the running first device, so that it outlives the agent; `None` without a device or a key.
    ///
    /// # Errors
    /// [`HostError`] where the device cannot be read.
    pub async fn device_private_key(&mut self) -> Result<Option<PrivateKey>, HostError> {
        self.observe(Scope::NONE).await?;
        let Some(target) = self.target(Link::Device) else { return Ok(None) };
        blocking("the device's private key", move || wireguard::read_private_key(target)).await
    }

    /// Makes the kernel forward the families in use between our links and the others, as far as it can be written.
    /// Gives what is still wrong, in words, with the cure. Call it when our links exist.
    ///
    /// # Errors
    /// [`HostError::Read`] where that could not be found out.
    pub async fn ensure_forwarding(
        &mut self,
        ipv4: bool,
        ipv6: bool,
    ) -> Result<Vec<sysctl::Shortcoming>, HostError> {
        let netlink = Arc::clone(&self.netlink);
        let links = self.router_advertised.clone();
        let next = self.cache.indexes.contains_key(&Link::Next);
        let work = move || Ok(sysctl::ensure_forwarding(&mut lock(&netlink), ipv4, ipv6, next, &links));
        blocking("the host's settings", work).await
    }
}

pub(crate) fn lock(netlink: &Mutex<Netlink>) -> std::sync::MutexGuard<'_, Netlink> {
    netlink.lock().unwrap_or_else(PoisonError::into_inner)
}
