//! The kernel: what it has, how it is set, and what others left in it.

use wg_overlay_host::DeviceMode;
use wg_overlay_mesh::{BRIDGE, DEVICE, Implementation, ObservedState, UnderlayLink, WIREGUARD_OVERHEAD};

use super::{Facts, Outcome, fail, need, ok, skipped, warn};

type Found = Result<Outcome, Outcome>;

fn runs_in(facts: &Facts) -> Option<Implementation> {
    Some(facts.kernel.as_ref().ok()?.device.as_ref()?.implementation)
}

pub(super) fn wireguard(facts: &Facts) -> Found {
    let cure =
        "modprobe wireguard, or a kernel from 5.6; then delete wgo0, and the agent makes it in the kernel";
    let has = facts.own.exists("/sys/module/wireguard");
    Ok(match runs_in(facts) {
        Some(Implementation::Kernel) => ok("the tunnel runs in the kernel"),
        Some(Implementation::UserSpace) if has && facts.config.device != DeviceMode::UserSpace => warn(
            "the tunnel runs in user space, though the kernel has WireGuard",
            "delete wgo0: ip link delete wgo0",
        ),
        Some(Implementation::UserSpace) if facts.config.device == DeviceMode::UserSpace => {
            ok("the tunnel runs in user space, as configured")
        }
        Some(Implementation::UserSpace) => warn("the tunnel runs in user space", cure),
        None if has => ok("the kernel has WireGuard"),
        None => match facts.config.device {
            DeviceMode::Kernel => fail("the module wireguard is not loaded, and device is kernel", cure),
            DeviceMode::UserSpace => ok("not needed: device is userspace"),
            DeviceMode::Auto => {
                warn("the module wireguard is not loaded; without it the tunnel runs in user space", cure)
            }
        },
    })
}

pub(super) fn tun(facts: &Facts) -> Found {
    if facts.config.device == DeviceMode::Kernel || runs_in(facts) == Some(Implementation::Kernel) {
        return Ok(ok("not needed"));
    }
    if runs_in(facts) == Some(Implementation::UserSpace) {
        return Ok(ok("a device runs"));
    }
    let path = facts.own.path("/dev/net/tun");
    Ok(match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ok("/dev/net/tun opens"),
        Err(_) if facts.host_files.is_none() => skipped(
            "not visible from the agent's pod: only the pod of wg-overlay-device has /dev/net/tun. runc 1.2.0 to 1.2.3 denies it there; run on the host: runc --version",
        ),
        Err(error) => fail(
            format!("/dev/net/tun: {error}; a user-space device needs it"),
            "modprobe tun; where a container runtime denies it (runc 1.2.0 to 1.2.3), update runc",
        ),
    })
}

pub(super) fn links(facts: &Facts) -> Found {
    let kernel = match &facts.kernel {
        Ok(kernel) => kernel,
        // the error names the link and the cure, or nft, which has its own check
        Err(error) if facts.nft.is_err() => return Ok(skipped(error)),
        Err(error) => return Ok(fail(error, "the agent goes on once it can read the kernel")),
    };
    let missing =
        [(DEVICE, kernel.device.as_ref().map(|d| d.up)), (BRIDGE, kernel.bridge.as_ref().map(|b| b.up))];
    let wrong: Vec<_> = missing
        .iter()
        .filter(|(_, up)| *up != Some(true))
        .map(|(name, up)| format!("{name} {}", if up.is_none() { "is not there" } else { "is down" }))
        .collect();
    Ok(if wrong.is_empty() {
        ok(format!("{DEVICE} and {BRIDGE} are up"))
    } else {
        warn(
            wrong.join(", "),
            "the agent makes them, if it runs; where they vanish again and again, see network-manager and systemd-networkd",
        )
    })
}

pub(super) fn udp_port(facts: &Facts) -> Found {
    let port = facts.config.listen_port;
    if facts.kernel.as_ref().is_ok_and(|k| k.device.as_ref().is_some_and(|d| d.listen_port == port)) {
        return Ok(ok(format!("{DEVICE} listens on UDP {port}")));
    }
    Ok(match &facts.port_holder {
        None => ok(format!("nobody holds UDP {port}")),
        Some(holder) => fail(
            format!("UDP {port} is held by {holder}"),
            "stop it (a wg0 of the Go wg-overlay: ip link delete wg0), or set listenPort on this node",
        ),
    })
}

pub(super) fn forwarding(facts: &Facts) -> Found {
    let (v4, v6) = families(facts);
    let wrong = [
        ("net/ipv4/conf/all/forwarding", v4, "answers from outside the cluster do not reach pods"),
        ("net/ipv6/conf/all/forwarding", v6, "no IPv6 packet reaches a pod from another node or leaves one"),
    ];
    let wrong: Vec<_> = wrong
        .into_iter()
        .filter(|(path, used, _)| *used && facts.own.sysctl(path).as_deref() == Some("0"))
        .map(|(path, _, effect)| (path.replace('/', "."), effect))
        .collect();
    Ok(if wrong.is_empty() {
        ok("on")
    } else {
        let causes: Vec<_> = wrong.iter().map(|(name, effect)| format!("{name} is 0: {effect}")).collect();
        let cures: Vec<_> = wrong.iter().map(|(name, _)| format!("sysctl -w {name}=1")).collect();
        fail(causes.join("; "), format!("on the host: {}", cures.join("; ")))
    })
}

/// The families of this node's pods, both where they are not known.
fn families(facts: &Facts) -> (bool, bool) {
    let cidrs: Vec<String> = match (&facts.agent, &facts.cluster) {
        (Ok(status), _) if !status.pods.is_empty() => status.pods.iter().map(|p| p.cidr.clone()).collect(),
        (_, Ok(cluster)) => cluster.node.as_ref().map(|n| n.pod_cidrs.clone()).unwrap_or_default(),
        _ => Vec::new(),
    };
    let v6 = cidrs.iter().any(|cidr| cidr.contains(':'));
    let v4 = cidrs.iter().any(|cidr| !cidr.contains(':'));
    if cidrs.is_empty() { (true, true) } else { (v4, v6) }
}

pub(super) fn br_netfilter(facts: &Facts) -> Found {
    let values = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]
        .map(|path| facts.own.sysctl(path));
    Ok(match values {
        [None, _] => fail(
            "no br_netfilter: a ClusterIP between two pods of one node fails",
            "modprobe br_netfilter, and a line in /etc/modules-load.d",
        ),
        // our bridge has a switch of its own
        _ => match facts.kernel.as_ref().ok().and_then(|k| k.bridge.as_ref()) {
            Some(bridge) if bridge.netfilter == Some(false) => {
                warn(format!("{BRIDGE} does not pass netfilter"), "the agent switches it on, if it runs")
            }
            _ => ok("loaded"),
        },
    })
}

pub(super) fn rp_filter(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let of = |link: &str| {
        facts.own.sysctl(&format!("net/ipv4/conf/{link}/rp_filter")).and_then(|v| v.parse::<u8>().ok())
    };
    let all = of("all").unwrap_or(0);
    // net/ipv4: the larger of both counts (Documentation/networking/ip-sysctl.rst), and 2, loose, is the larger
    let is_strict = |link: &&UnderlayLink| of(&link.name).unwrap_or(0).max(all) == 1;
    let strict: Vec<_> =
        with_default_route(kernel).into_iter().filter(is_strict).map(|l| l.name.clone()).collect();
    Ok(match strict.as_slice() {
        [] => ok("not strict on the links with a default route"),
        [one] => ok(format!("strict on {one}, the only link with a default route that is: no harm")),
        several => warn(
            format!(
                "strict on {}: a peer's packets are dropped where the way back is another link",
                several.join(", ")
            ),
            "loose is enough: sysctl -w net.ipv4.conf.LINK.rp_filter=2",
        ),
    })
}

fn with_default_route(kernel: &ObservedState) -> Vec<&UnderlayLink> {
    let default = |index: u32| {
        kernel.underlay.routes.iter().any(|r| r.link == index && r.destination.prefix_len() == 0)
    };
    kernel.underlay.links.iter().filter(|(index, _)| default(**index)).map(|(_, link)| link).collect()
}

pub(super) fn conntrack(facts: &Facts) -> Found {
    let number =
        |name: &str| facts.own.sysctl(&format!("net/netfilter/{name}")).and_then(|v| v.parse::<u64>().ok());
    let (Some(count), Some(max)) = (number("nf_conntrack_count"), number("nf_conntrack_max")) else {
        return Ok(skipped("connection tracking is not loaded, or its counters are not readable here"));
    };
    // of the thread, whose network namespace it is; most kernels don't offer the file any more
    let port = format!("dport={} ", facts.config.listen_port);
    let table = facts.own.read("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    let tracked = table.lines().filter(|line| line.contains(" udp ") && line.contains(&port)).count();
    Ok(if count.saturating_mul(10) >= max.saturating_mul(9) {
        fail(
            format!("{count} of {max} connections: beyond it the kernel drops new ones"),
            "sysctl -w net.netfilter.nf_conntrack_max=…, or look for what opens so many",
        )
    } else if tracked > 0 {
        warn(
            format!("{tracked} connections of the tunnel itself are tracked"),
            "our table keeps them out; is it there (check nft)? Older ones go within minutes",
        )
    } else {
        ok(format!("{count} of {max} connections"))
    })
}

pub(super) fn mtu(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let Some(device) = &kernel.device else { return Ok(skipped(format!("there is no {DEVICE} yet"))) };
    let told = facts.agent.as_ref().ok().and_then(|s| s.device.as_ref()?.underlay.clone());
    let links = with_default_route(kernel);
    let smallest = links.into_iter().min_by_key(|link| link.mtu).map(|link| (link.name.clone(), link.mtu));
    let Some((link, underlay)) = told.or(smallest) else {
        return Ok(skipped("the underlay link is not known without the agent or a default route"));
    };
    let (inner, outer) = (device.mtu, device.mtu.saturating_add(WIREGUARD_OVERHEAD));
    Ok(if outer > underlay && inner > wg_overlay_mesh::IPV6_MINIMUM_MTU {
        fail(
            format!(
                "{DEVICE} has {inner}, and with {WIREGUARD_OVERHEAD} more its packets don't fit into {link}'s {underlay}"
            ),
            format!("set mtu: auto, or at most {}", underlay.saturating_sub(WIREGUARD_OVERHEAD)),
        )
    } else if outer > underlay {
        warn(
            format!("{link} has {underlay}: the tunnel's packets are fragmented"),
            format!("give {link} an MTU of at least {outer}"),
        )
    } else {
        ok(format!(
            "{DEVICE} {inner}, {link} {underlay}; what the path between the nodes takes is not seen here: ping -M do -s …"
        ))
    })
}

/// Links that other networks leave behind, and whose they are.
const OTHERS: &[(&str, &str)] = &[
    ("flannel.1", "flannel"),
    ("flannel-wg", "flannel"),
    ("flannel-v6.1", "flannel"),
    ("cni0", "flannel or another bridge network"),
    ("vxlan.calico", "Calico"),
    ("wireguard.cali", "Calico"),
    ("tunl0", "Calico or kube-router, in use only with an address"),
    ("cilium_host", "Cilium"),
    ("cilium_net", "Cilium"),
    ("cilium_wg0", "Cilium"),
    ("kube-bridge", "kube-router"),
    ("kilo0", "Kilo"),
    ("weave", "Weave"),
    ("antrea-gw0", "Antrea"),
    ("wg0", "perhaps the Go wg-overlay, perhaps a VPN of yours"),
];

pub(super) fn leftovers(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let name = |link: &UnderlayLink| OTHERS.iter().find(|(name, _)| *name == link.name).copied();
    let found: Vec<_> = kernel.underlay.links.values().filter_map(name).collect();
    Ok(if found.is_empty() {
        ok("no link of another pod network is up")
    } else {
        let text: Vec<_> = found.iter().map(|(link, owner)| format!("{link} ({owner})")).collect();
        warn(
            format!("links of another network: {}", text.join(", ")),
            "where that network is gone: ip link delete NAME, or restart the node",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wg_overlay_mesh::{ObservedDevice, UnderlayRoute};

    use super::*;
    use crate::doctor::facts::tests::{facts, put};

    fn link(facts: &mut Facts, index: u32, name: &str, mtu: u32) {
        let Ok(kernel) = &mut facts.kernel else { return };
        kernel
            .underlay
            .links
            .insert(index, UnderlayLink { name: name.into(), mtu, addresses: BTreeSet::new() });
        let route = UnderlayRoute { destination: "0.0.0.0/0".parse().unwrap(), link: index, metric: index };
        kernel.underlay.routes.push(route);
    }

    fn device(facts: &mut Facts, mtu: u32) {
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

    #[test]
    fn a_tunnel_that_is_too_large_for_its_link_fails() {
        let (mut facts, _folder) = facts();
        link(&mut facts, 2, "eth0", 1450);
        device(&mut facts, 1420);
        assert!(matches!(mtu(&facts), Ok(Outcome::Fail { cure, .. }) if cure.contains("1370")));
        device(&mut facts, 1370);
        assert!(matches!(mtu(&facts), Ok(Outcome::Ok { .. })));
    }

    #[test]
    fn the_port_is_ours_or_somebodys() {
        let (mut facts, _folder) = facts();
        facts.port_holder = Some("the WireGuard device wg0 (wg show wg0)".into());
        assert!(matches!(udp_port(&facts), Ok(Outcome::Fail { cause, .. }) if cause.contains("wg0")));
        device(&mut facts, 1420);
        assert!(matches!(udp_port(&facts), Ok(Outcome::Ok { .. })));
    }

    #[test]
    fn strict_filtering_warns_only_where_there_are_two_ways() {
        let (mut facts, _folder) = facts();
        link(&mut facts, 2, "eth0", 1500);
        put(&facts, "/proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
        assert!(matches!(rp_filter(&facts), Ok(Outcome::Ok { .. })));
        link(&mut facts, 3, "eth1", 1500);
        assert!(matches!(rp_filter(&facts), Ok(Outcome::Warn { .. })));
        put(&facts, "/proc/sys/net/ipv4/conf/eth0/rp_filter", "2\n");
        assert!(matches!(rp_filter(&facts), Ok(Outcome::Ok { .. })));
    }

    #[test]
    fn forwarding_bridge_and_conntrack_are_read_from_their_files() {
        let (facts, _folder) = facts();
        assert!(matches!(br_netfilter(&facts), Ok(Outcome::Fail { .. })));
        put(&facts, "/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n");
        assert!(matches!(br_netfilter(&facts), Ok(Outcome::Ok { .. })));
        put(&facts, "/proc/sys/net/ipv4/conf/all/forwarding", "0\n");
        assert!(matches!(forwarding(&facts), Ok(Outcome::Fail { .. })));
        put(&facts, "/proc/sys/net/ipv4/conf/all/forwarding", "1\n");
        assert!(matches!(forwarding(&facts), Ok(Outcome::Ok { .. })));
        assert!(matches!(conntrack(&facts), Ok(Outcome::Skipped { .. })));
        put(&facts, "/proc/sys/net/netfilter/nf_conntrack_max", "1000\n");
        put(&facts, "/proc/sys/net/netfilter/nf_conntrack_count", "950\n");
        assert!(matches!(conntrack(&facts), Ok(Outcome::Fail { .. })));
    }

    #[test]
    fn another_networks_links_are_named() {
        let (mut facts, _folder) = facts();
        link(&mut facts, 2, "eth0", 1500);
        assert!(matches!(leftovers(&facts), Ok(Outcome::Ok { .. })));
        link(&mut facts, 3, "cilium_host", 1500);
        assert!(matches!(leftovers(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("Cilium")));
    }
}
