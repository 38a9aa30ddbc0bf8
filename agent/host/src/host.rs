//! The kernel of this host: observed into one value, changed by steps.
//!
//! Holds no policy: a step is carried out as it stands. What was read last is kept and follows our own changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use netlink_packet_route::route::{RouteProtocol, RouteType};
use tokio::task::spawn_blocking;
use wg_overlay_mesh::{
    BRIDGE, DEVICE, Implementation, ObservedBridge, ObservedDevice, ObservedRoute, ObservedState, Underlay,
    UnderlayRoute,
};

use crate::{
    DeviceMode, DeviceProgram, Events, HostError, Nft, PrivateKey,
    cache::Cache,
    links::{self, FoundLink},
    netlink::Netlink,
    routes::{self, FoundRoute, OwnRoutes},
    sysctl, wireguard,
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
    /// The program that implements it in user space.
    pub device_program: DeviceProgram,
}

/// What to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope {
    /// Links, addresses and routes.
    pub network: bool,
    /// The nftables table, and the host's own chains.
    pub firewall: bool,
    /// The device's key, port and peers.
    pub wireguard: bool,
}

impl Scope {
    /// Everything.
    pub const ALL: Self = Self { network: true, firewall: true, wireguard: true };
    /// Nothing but what must be read after a failed step.
    pub const NONE: Self = Self { network: false, firewall: false, wireguard: false };
    /// Links, addresses and routes.
    pub const NETWORK: Self = Self { network: true, ..Self::NONE };
    /// The nftables table, and the host's own chains.
    pub const FIREWALL: Self = Self { firewall: true, ..Self::NONE };
    /// The device's key, port and peers.
    pub const WIREGUARD: Self = Self { wireguard: true, ..Self::NONE };

    /// What either reads.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            network: self.network || other.network,
            firewall: self.firewall || other.firewall,
            wireguard: self.wireguard || other.wireguard,
        }
    }
}

/// The kernel of this host, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Host {
    pub(crate) config: HostConfig,
    pub(crate) netlink: Arc<Mutex<Netlink>>,
    pub(crate) nft: Nft,
    pub(crate) private_key: Option<PrivateKey>,
    pub(crate) cache: Cache,
    /// What must be read again, because it was never read, or a step failed half-way.
    pub(crate) stale: Scope,
    warnings: Vec<String>,
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
            private_key: None,
            cache: Cache::default(),
            stale: Scope::ALL,
            warnings: Vec::new(),
            router_advertised: BTreeSet::new(),
        })
    }

    /// Others' changes, beginning with this moment. Open it before the first observation.
    ///
    /// # Errors
    /// [`HostError::Open`] where a socket does not open.
    pub fn events(&self) -> Result<Events, HostError> {
        Events::open(lock(&self.netlink).port()).map_err(HostError::Open)
    }

    /// Reads what the scope names, and what a failed step left uncertain, and gives everything as far as it is known.
    /// The first observation reads everything. Reads only.
    ///
    /// # Errors
    /// [`HostError`]; what could not be read is read at the next call.
    pub async fn observe(&mut self, scope: Scope) -> Result<&ObservedState, HostError> {
        self.stale = self.stale.union(scope);
        if self.stale.network {
            self.observe_network().await?;
            self.stale.network = false;
        }
        if self.stale.wireguard {
            self.observe_wireguard().await?;
            self.stale.wireguard = false;
        }
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

    /// What could not be seen at the last observation, and the cure, for a person.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The packets' rules, for the table's counters.
    pub fn nft(&self) -> &Nft {
        &self.nft
    }

    /// Says which addresses of the bridge pods of an earlier PodCIDR still use; the observed state repeats it.
    pub fn set_addresses_in_use(&mut self, addresses: BTreeSet<IpNet>) {
        self.cache.state.addresses_in_use = addresses;
    }

    /// Hands over the private key that a step [`wg_overlay_mesh::Step::SetKey`] writes.
    pub fn set_private_key(&mut self, key: PrivateKey) {
        self.private_key = Some(key);
    }

    /// The private key of the running device, so that it outlives the agent; `None` without a device or a key.
    ///
    /// # Errors
    /// [`HostError`] where the device cannot be read.
    pub async fn device_private_key(&mut self) -> Result<Option<PrivateKey>, HostError> {
        self.observe(Scope::NONE).await?;
        let Some(device) = &self.cache.state.device else { return Ok(None) };
        let implementation = device.implementation;
        blocking("the device's private key", move || wireguard::read_private_key(implementation)).await
    }

    /// Makes the kernel forward the families in use between our links and the others, as far as it can be written.
    /// Gives what is still wrong, in words, with the cure. Call it when our links exist.
    pub async fn ensure_forwarding(&mut self, ipv4: bool, ipv6: bool) -> Vec<sysctl::Shortcoming> {
        let netlink = Arc::clone(&self.netlink);
        let links = self.router_advertised.clone();
        let work = move || sysctl::ensure_forwarding(&mut lock(&netlink), ipv4, ipv6, &links);
        spawn_blocking(work).await.unwrap_or_default()
    }

    async fn observe_firewall(&mut self) -> Result<(), HostError> {
        let (nft, port) = (self.nft.clone(), self.config.listen_port);
        let found = spawn_blocking(move || nft.observe(port))
            .await
            .map_err(|e| HostError::Read { what: "the firewall", source: io::Error::other(e) })?;
        let found = found.map_err(HostError::Firewall)?;
        self.cache.state.firewall = found.firewall;
        self.cache.state.host_chains = found.host_chains;
        self.warnings = found.warnings;
        Ok(())
    }

    async fn observe_network(&mut self) -> Result<(), HostError> {
        self.observe_links().await?;
        let found = blocking("routes", routes::read).await?;
        let links = &self.cache.state.underlay.links;
        let advertised =
            found.iter().filter(|r| r.protocol == RouteProtocol::Ra && r.destination.prefix_len() == 0);
        let advertised = advertised.filter_map(|route| links.get(&route.link?));
        self.router_advertised = advertised.map(|link| link.name.clone()).collect();
        self.cache.state.underlay.routes = found.iter().filter_map(|r| self.underlay_route(r)).collect();
        let own: OwnRoutes = found.into_iter().collect();
        let device = self.cache.device_index;
        let observed = |route: FoundRoute| ObservedRoute {
            through_device: route.link.is_some() && route.link == device,
            source: route.source,
            mtu: route.mtu,
        };
        self.cache.state.routes = own.tunnel.into_iter().map(|(net, route)| (net, observed(route))).collect();
        self.cache.state.unreachable = own.unreachable;
        Ok(())
    }

    /// Reads links and addresses. A device that is not the one known so far has its settings read next.
    pub(crate) async fn observe_links(&mut self) -> Result<(), HostError> {
        let found = blocking("links", links::read).await?;
        let by_name = |name: &str| found.values().find(|link| link.name == name);
        let bridge = by_name(BRIDGE).map(observed_bridge).transpose()?;
        let device = by_name(DEVICE);
        let implementation = device.map(implementation).transpose()?;
        self.cache.bridge_index = by_name(BRIDGE).map(|link| link.index);
        self.cache.state.bridge = bridge;
        self.cache.state.underlay = Underlay {
            links: found
                .values()
                .filter(|l| links::is_underlay(l))
                .map(|l| (l.index, links::underlay_link(l)))
                .collect(),
            routes: std::mem::take(&mut self.cache.state.underlay.routes),
        };
        let (Some(device), Some(implementation)) = (device, implementation) else {
            self.cache.forget_device();
            return Ok(());
        };
        if self.cache.device_index != Some(device.index) {
            self.cache.forget_device();
            self.cache.device_index = Some(device.index);
            self.stale.wireguard = true;
        }
        let before = self.cache.state.device.take();
        self.cache.state.device = Some(ObservedDevice {
            implementation,
            marked: device.marked,
            up: device.up,
            mtu: device.mtu,
            addresses: device.addresses.clone(),
            public_key: before.as_ref().and_then(|device| device.public_key),
            listen_port: before.map_or(0, |device| device.listen_port),
        });
        Ok(())
    }

    pub(crate) async fn observe_wireguard(&mut self) -> Result<(), HostError> {
        let Some(device) = &mut self.cache.state.device else {
            self.cache.set_peers(BTreeMap::new());
            return Ok(());
        };
        let implementation = device.implementation;
        let settings = blocking("the WireGuard device", move || wireguard::read(implementation)).await?;
        device.public_key = settings.public_key;
        device.listen_port = settings.listen_port;
        self.cache.set_peers(settings.peers);
        Ok(())
    }

    fn underlay_route(&self, route: &FoundRoute) -> Option<UnderlayRoute> {
        let link = route.link.filter(|_| route.kind == RouteType::Unicast && !route.is_ours())?;
        let known = self.cache.state.underlay.links.contains_key(&link);
        known.then_some(UnderlayRoute { destination: route.destination, link, metric: route.metric })
    }
}

fn observed_bridge(link: &FoundLink) -> Result<ObservedBridge, HostError> {
    if link.kind != "bridge" {
        return Err(HostError::ForeignLink { name: BRIDGE, kind: link.kind.clone(), expected: "bridge" });
    }
    Ok(ObservedBridge {
        marked: link.marked,
        up: link.up,
        mtu: link.mtu,
        addresses: link.addresses.clone(),
        netfilter: link.netfilter.filter(|_| sysctl::has_bridge_netfilter()),
    })
}

fn implementation(link: &FoundLink) -> Result<Implementation, HostError> {
    match link.kind.as_str() {
        "wireguard" => Ok(Implementation::Kernel),
        "tun" if wireguard::socket_is_live() => Ok(Implementation::UserSpace),
        "tun" => Err(HostError::DeadDevice {
            name: DEVICE,
            socket: wireguard::socket_path().display().to_string(),
        }),
        kind => {
            Err(HostError::ForeignLink { name: DEVICE, kind: kind.to_owned(), expected: "wireguard or tun" })
        }
    }
}

pub(crate) fn lock(netlink: &Mutex<Netlink>) -> std::sync::MutexGuard<'_, Netlink> {
    netlink.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    let answer = spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    answer.map_err(|source| HostError::Read { what, source })
}
