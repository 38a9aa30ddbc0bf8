//! Reading the kernel's parts into the one observed state.

use std::io;

use netlink_packet_route::route::{RouteProtocol, RouteType};
use tokio::task::spawn_blocking;
use wg_overlay_mesh::{
    BRIDGE, DEVICE, Implementation, ObservedBridge, ObservedDevice, ObservedRoute, Underlay, UnderlayRoute,
};

use crate::{
    Host, HostError,
    links::{self, FoundLink},
    routes::{self, FoundRoute, OwnRoutes},
    sysctl, wireguard,
};

impl Host {
    pub(super) async fn observe_firewall(&mut self) -> Result<(), HostError> {
        let (nft, port) = (self.nft.clone(), self.config.listen_port);
        let found = spawn_blocking(move || nft.observe_changed(port))
            .await
            .map_err(|e| HostError::Read { what: "the firewall", source: io::Error::other(e) })?;
        let Some(found) = found.map_err(HostError::Firewall)? else { return Ok(()) };
        self.cache.state.firewall = found.firewall;
        self.cache.state.port_guard = found.port_guard;
        self.cache.state.host_chains = found.host_chains;
        self.warnings = found.warnings;
        Ok(())
    }

    pub(super) async fn observe_network(&mut self) -> Result<(), HostError> {
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
        self.cache.state.routes =
            own.tunnel.into_iter().map(|route| (route.destination, observed(route))).collect();
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
            self.cache.set_peers(Vec::new());
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

/// Runs a reading that blocks on a thread for such.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    let answer = spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    answer.map_err(|source| HostError::Read { what, source })
}
