//! Reading the kernel's parts into the one observed state.

use std::io;

use netlink_packet_route::route::{RouteProtocol, RouteType};
use tokio::task::spawn_blocking;
use wg_overlay_mesh::{
    BRIDGE, DEVICE, Implementation, Link, NEXT_DEVICE, ObservedBridge, ObservedDevice, ObservedRoute,
    Underlay, UnderlayRoute,
};

use crate::{
    Host, HostError, NftError,
    links::{self, FoundLink},
    routes::{self, FoundRoute, OwnRoutes},
    sysctl,
    wireguard::{self, Target},
};

impl Host {
    pub(super) async fn observe_firewall(&mut self) -> Result<(), HostError> {
        let (nft, port) = (self.nft.clone(), self.config.listen_port);
        let found = firewall(move || nft.observe_changed(port)).await?;
        let Some(found) = found else { return Ok(()) };
        self.cache.state.firewall = found.firewall;
        self.cache.state.port_guard = found.port_guard;
        self.cache.state.host_chains = found.host_chains;
        self.warnings = found.warnings;
        Ok(())
    }

    /// Takes what [`read_routes`] found after the links.
    pub(super) fn take_routes(&mut self, found: Vec<FoundRoute>) {
        let links = &self.cache.state.underlay.links;
        let advertised =
            found.iter().filter(|r| r.protocol == RouteProtocol::Ra && r.destination.prefix_len() == 0);
        let advertised = advertised.filter_map(|route| links.get(&route.link?));
        self.router_advertised = advertised.map(|link| link.name.clone()).collect();
        self.cache.state.underlay.routes = found.iter().filter_map(|r| self.underlay_route(r)).collect();
        let own: OwnRoutes = found.into_iter().collect();
        let indexes = &self.cache.indexes;
        let through = |index: u32| indexes.iter().find(|(_, own)| **own == index).map(|(link, _)| *link);
        let observed = |route: FoundRoute| ObservedRoute {
            through: route.link.and_then(through).filter(|link| *link != Link::Bridge),
            source: route.source,
            mtu: route.mtu,
        };
        self.cache.state.routes =
            own.tunnel.into_iter().map(|route| (route.destination, observed(route))).collect();
        self.cache.state.unreachable = own.unreachable;
    }

    /// Reads links and addresses. A device that is not the one known so far has its settings read next.
    pub(crate) async fn observe_links(&mut self) -> Result<(), HostError> {
        let found = blocking("links", links::read).await?;
        let by_name = |name: &str| found.values().find(|link| link.name == name);
        let bridge = by_name(BRIDGE).map(observed_bridge).transpose()?;
        let device = by_name(DEVICE).map(|link| observed_device(Link::Device, link)).transpose()?;
        let next = by_name(NEXT_DEVICE).map(second_device).transpose();
        match by_name(BRIDGE) {
            Some(link) => self.cache.indexes.insert(Link::Bridge, link.index),
            None => self.cache.indexes.remove(&Link::Bridge),
        };
        self.cache.state.bridge = bridge;
        self.cache.state.underlay = Underlay {
            links: found
                .values()
                .filter(|l| links::is_underlay(l))
                .map(|l| (l.index, links::underlay_link(l)))
                .collect(),
            routes: std::mem::take(&mut self.cache.state.underlay.routes),
        };
        self.stale.wireguard |= self.cache.set_device(Link::Device, device);
        // a stranger's link is in the way of a rotation only
        let (next, foreign) = next.map_or_else(|error| (None, Some(error)), |next| (next, None));
        self.foreign = foreign;
        self.stale.wireguard |= self.cache.set_device(Link::Next, next);
        Ok(())
    }

    pub(crate) async fn observe_wireguard(&mut self) -> Result<(), HostError> {
        for target in [Link::Device, Link::Next].map(|link| self.target(link)).into_iter().flatten() {
            let settings = blocking("a WireGuard device", move || wireguard::read(target)).await?;
            self.cache.set_settings(target.0, settings);
        }
        Ok(())
    }

    /// Where a device's settings are read and written, if it exists.
    pub(crate) fn target(&self, link: Link) -> Option<Target> {
        self.cache.device(link).map(|device| Target(link, device.implementation))
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

fn observed_device(device: Link, link: &FoundLink) -> Result<(u32, ObservedDevice), HostError> {
    let observed = ObservedDevice {
        implementation: implementation(device, link)?,
        marked: link.marked,
        up: link.up,
        mtu: link.mtu,
        addresses: link.addresses.clone(),
        public_key: None,
        listen_port: 0,
    };
    Ok((link.index, observed))
}

/// A link of the second device's name. One that isn't marked is ours only as it was made: between that and its mark an agent
/// may have ended.
fn second_device(link: &FoundLink) -> Result<(u32, ObservedDevice), HostError> {
    let untouched = !link.up && link.addresses.is_empty();
    if link.marked || untouched {
        return observed_device(Link::Next, link);
    }
    Err(HostError::ForeignLink { name: NEXT_DEVICE, kind: link.kind.clone(), expected: "one of ours" })
}

fn implementation(device: Link, link: &FoundLink) -> Result<Implementation, HostError> {
    let name = device.name();
    match link.kind.as_str() {
        "wireguard" => Ok(Implementation::Kernel),
        "tun" if wireguard::socket_is_live(device) => Ok(Implementation::UserSpace),
        "tun" => {
            let socket = wireguard::socket_path(device).display().to_string();
            Err(HostError::DeadDevice { name, socket })
        }
        kind => Err(HostError::ForeignLink { name, kind: kind.to_owned(), expected: "wireguard or tun" }),
    }
}

/// Every route of the host.
pub(super) async fn read_routes() -> Result<Vec<FoundRoute>, HostError> {
    blocking("routes", routes::read).await
}

/// Runs a reading that blocks on a thread for such.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    let answer = spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    answer.map_err(|source| HostError::Read { what, source })
}

/// The same for the packets' rules.
pub(super) async fn firewall<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NftError> + Send + 'static,
) -> Result<T, HostError> {
    let died = |error| HostError::Read { what: "the firewall", source: io::Error::other(error) };
    spawn_blocking(work).await.map_err(died)?.map_err(HostError::Firewall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_dies_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let died = runtime.block_on(firewall(|| -> Result<(), _> { panic!("on purpose") }));
        assert!(matches!(died, Err(error @ HostError::Read { .. }) if error.is_retryable()));
    }
}
