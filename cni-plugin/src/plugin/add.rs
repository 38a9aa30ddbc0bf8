//! ADD: reserve, guard the port, make the link, configure the pod, mark the link. Whatever fails, all that this ADD made is
//! taken back, but for the guard's elements, which the agent collects.

use std::{net::IpAddr, path::Path, time::Duration};

use wg_overlay_ipam::{Holder, Range};

use super::{
    conf::NetConf,
    error::CniError,
    link::{self, PodLink},
    netns::Netns,
    port_guard::PortGuard,
    print,
    result::{self, Interface},
    sysctl,
};
use crate::{
    BRIDGE, Network, PodPort,
    names::{pod_link_alias, pod_link_macs, pod_link_name},
    netlink::{Link, Netlink},
    store,
};

/// How long a port may take to forward, and how seldom it is looked at.
const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_millis(64);

/// Makes the attachment and prints its result. That it can't be printed counts as the attachment's failure.
pub(crate) fn add(conf: &NetConf, holder: &Holder, netns_path: &Path) -> Result<(), CniError> {
    let previous = conf.prev_result()?.unwrap_or_default();
    let network = Network::read(&conf.state_dir)?;
    let ranges = network.ranges().map_err(CniError::Config)?;
    let has = |v6| ranges.iter().any(|range| range.gateway().is_ipv6() == v6);
    let (ipv4, ipv6) = (has(false), has(true));

    let netns = Netns::open(netns_path)?;
    let mut host = Netlink::open()?;
    let bridge = host.link(BRIDGE)?.ok_or(CniError::NoBridge)?;
    let guard = PortGuard::open()?;
    sysctl::enable_forwarding(ipv4, ipv6)?;
    let mut pod = netns.enter(&bridge)?;
    if pod.link(holder.ifname())?.is_some() {
        return Err(CniError::InterfaceExists {
            ifname: holder.ifname().to_owned(),
            netns: netns_path.to_owned(),
        });
    }

    let store = store(&conf.state_dir);
    let _attaching = store.begin_attach().map_err(CniError::Ipam)?;
    let (host_mac, pod_mac) = pod_link_macs(holder);
    let link = PodLink {
        host_name: pod_link_name(holder),
        host_mac,
        pod_name: holder.ifname(),
        pod_mac,
        mtu: network.mtu,
    };
    let addresses = store.reserve(holder, &ranges).map_err(CniError::Reserve)?.addresses;
    let port = PodPort { link: link.host_name.clone(), mac: pod_mac, addresses };
    let networks: Vec<(Range, IpAddr)> = ranges.into_iter().zip(port.addresses.iter().copied()).collect();

    let guarded = guard.add(&port);
    let made = guarded.and_then(|()| Ok(host.request(vec![link.create(&bridge, &netns)])?));
    let is_made = made.is_ok();
    let done = made.and_then(|_| {
        host.request(vec![link.set_up_port(ipv6)])?;
        let theirs = find(&mut pod, link.pod_name)?;
        sysctl::prepare_pod_link(&theirs, ipv4, ipv6)?;
        pod.request(link::configure_pod(&theirs, &networks))?;
        await_forwarding(&mut host, &link.host_name)?;
        host.request(vec![link.mark(pod_link_alias(holder))])?;
        let sandbox = || Some(netns_path.display().to_string());
        let interfaces = [
            Interface { name: BRIDGE, mac: &bridge.mac, mtu: bridge.mtu, sandbox: None },
            Interface { name: &link.host_name, mac: &link.host_mac, mtu: link.mtu, sandbox: None },
            Interface { name: link.pod_name, mac: &link.pod_mac, mtu: link.mtu, sandbox: sandbox() },
        ];
        print(&result::result(conf, previous, &interfaces, &networks))
    });
    if done.is_err() {
        // Best effort: what can't be taken back here, the collection finds by its reservation.
        if !is_made || link::delete(&mut host, &link.host_name, &pod_link_alias(holder), true).is_ok() {
            let _ = store.release(holder);
        }
    }
    done
}

/// A port forwards once the kernel has told its bridge of the carrier, which it does in its own time, at most a second
/// (net/core/link_watch.c). A pod that sends before loses its first packets. A port that stays shut, because somebody set
/// the bridge down, is no fault of this pod.
fn await_forwarding(host: &mut Netlink, port: &str) -> Result<(), CniError> {
    let mut waited = Duration::ZERO;
    let mut wait = Duration::from_millis(1);
    while !find(host, port)?.forwards && waited < PATIENCE {
        std::thread::sleep(wait);
        waited += wait;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    Ok(())
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Link, CniError> {
    netlink.link(name)?.ok_or_else(|| CniError::Io {
        action: format!("find the link {name}, which was just made"),
        source: std::io::ErrorKind::NotFound.into(),
    })
}
