//! How the kernel is set, and what its tables hold.

use wg_overlay_mesh::{DEVICE, NEXT_DEVICE};

use super::{Facts, Found, fail, links::with_default_route, need, ok, skipped, warn};

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

pub(super) fn rp_filter(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let of = |link: &str| {
        facts.own.sysctl(&format!("net/ipv4/conf/{link}/rp_filter")).and_then(|v| v.parse::<u8>().ok())
    };
    let all = of("all").unwrap_or(0);
    // net/ipv4: the larger of both counts (Documentation/networking/ip-sysctl.rst), and 2, loose, is the larger
    let is_strict = |link: &&str| of(link).unwrap_or(0).max(all) == 1;
    let devices = [kernel.device.as_ref().map(|_| DEVICE), kernel.next.as_ref().map(|_| NEXT_DEVICE)];
    let devices: Vec<_> = devices.into_iter().flatten().filter(is_strict).collect();
    let ways: Vec<_> =
        with_default_route(kernel).into_iter().map(|link| link.name.as_str()).filter(is_strict).collect();
    let mut causes = Vec::new();
    if !devices.is_empty() {
        let devices = devices.join(", ");
        causes.push(format!("strict on {devices}: packets that come by it are dropped while a key rotates"));
    }
    if ways.len() > 1 {
        let ways = ways.join(", ");
        causes.push(format!(
            "strict on {ways}: a peer's packets are dropped where the way back is another link"
        ));
    }
    Ok(match ways.as_slice() {
        _ if !causes.is_empty() => {
            warn(causes.join("; "), "loose is enough: sysctl -w net.ipv4.conf.LINK.rp_filter=2")
        }
        [one] => ok(format!("strict on {one}, the only link with a default route that is: no harm")),
        _ => ok("not strict on our devices and the links with a default route"),
    })
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

/// The kernel holds the neighbours of all links and network namespaces in one table of each family, and beyond `gc_thresh3`
/// takes no new ones (Documentation/networking/ip-sysctl.rst): peers in a subnet of a link, each pod, and in it its gateway.
pub(super) fn neighbours(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let subnets = || kernel.underlay.links.values().flat_map(|link| &link.addresses);
    let peers = kernel.peers.values().filter_map(|peer| Some(peer.endpoint?.ip()));
    let peers: Vec<_> = peers.filter(|ip| subnets().any(|net| net.contains(ip))).collect();
    let pods = facts.agent.as_ref().map(|status| status.pods.as_slice()).unwrap_or_default();
    let (mut rows, mut cures) = (Vec::new(), Vec::new());
    for (family, is_v6) in [("ipv4", false), ("ipv6", true)] {
        let path = format!("net/{family}/neigh/default/gc_thresh3");
        let Some(most) = facts.own.sysctl(&path).and_then(|text| text.parse::<u64>().ok()) else { continue };
        let used = pods.iter().filter(|range| range.cidr.contains(':') == is_v6).map(|range| range.used);
        let near = peers.iter().filter(|ip| ip.is_ipv6() == is_v6).map(|_| 1);
        let needed = used.map(|n| n.saturating_mul(2)).chain(near).fold(0, u64::saturating_add);
        let name = path.replace('/', ".");
        if needed > most {
            cures.push(format!("sysctl -w {name}={}", needed.saturating_mul(2)));
        }
        rows.push(format!("{needed}, and {name} is {most}"));
    }
    let found = format!("for peers in this node's subnets and for pods: {}", rows.join("; "));
    Ok(if rows.is_empty() {
        skipped("net.ipv4.neigh.default.gc_thresh3 is not readable here")
    } else if cures.is_empty() {
        ok(found)
    } else {
        warn(
            format!("more neighbours than the kernel holds, {found}"),
            format!("on the host: {}", cures.join("; ")),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wg_overlay_mesh::{ObservedPeer, PublicKey};

    use super::*;
    use crate::{
        doctor::{
            Outcome,
            facts::tests::{device, facts, link, put, second_device},
        },
        status::PodRange,
    };

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
    fn strict_filtering_warns_on_each_device_of_ours() {
        let (mut facts, _folder) = facts();
        put(&facts, "/proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
        assert!(matches!(rp_filter(&facts), Ok(Outcome::Ok { .. })));
        device(&mut facts, 1420);
        second_device(&mut facts);
        assert!(matches!(rp_filter(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("wgo0, wgo1")));
        put(&facts, "/proc/sys/net/ipv4/conf/wgo0/rp_filter", "2\n");
        assert!(
            matches!(rp_filter(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("strict on wgo1"))
        );
        put(&facts, "/proc/sys/net/ipv4/conf/wgo1/rp_filter", "2\n");
        assert!(matches!(rp_filter(&facts), Ok(Outcome::Ok { .. })));
    }

    #[test]
    fn more_neighbours_than_the_kernel_holds_warn() {
        let (mut facts, _folder) = facts();
        link(&mut facts, 2, "eth0", 1500);
        assert!(matches!(neighbours(&facts), Ok(Outcome::Skipped { .. })));
        put(&facts, "/proc/sys/net/ipv4/neigh/default/gc_thresh3", "3\n");
        put(&facts, "/proc/sys/net/ipv6/neigh/default/gc_thresh3", "1024\n");
        let mut peer = |n: u8, ip: &str| {
            let endpoint = Some(SocketAddr::new(ip.parse().unwrap(), 51820));
            let kernel = facts.kernel.as_mut().unwrap();
            let eth0 = kernel.underlay.links.get_mut(&2).unwrap();
            eth0.addresses.insert("192.0.2.1/24".parse().unwrap());
            let peer = ObservedPeer { endpoint, ..ObservedPeer::default() };
            kernel.peers.insert(PublicKey::from_bytes([n; 32]).unwrap(), peer);
            neighbours(&facts)
        };
        assert!(matches!(peer(2, "192.0.2.2"), Ok(Outcome::Ok { .. })));
        assert!(matches!(peer(3, "198.51.100.3"), Ok(Outcome::Ok { .. })));
        assert!(matches!(peer(4, "192.0.2.4"), Ok(Outcome::Ok { .. })));
        let pods = PodRange { cidr: "10.244.1.0/24".into(), used: 1, capacity: None };
        facts.agent.as_mut().unwrap().pods = vec![pods];
        assert!(matches!(
            neighbours(&facts),
            Ok(Outcome::Warn { cause, cure }) if cause.contains("4, and net.ipv4") && cure.contains("gc_thresh3=8")
        ));
    }

    #[test]
    fn forwarding_and_conntrack_are_read_from_their_files() {
        let (facts, _folder) = facts();
        put(&facts, "/proc/sys/net/ipv4/conf/all/forwarding", "0\n");
        assert!(matches!(forwarding(&facts), Ok(Outcome::Fail { .. })));
        put(&facts, "/proc/sys/net/ipv4/conf/all/forwarding", "1\n");
        assert!(matches!(forwarding(&facts), Ok(Outcome::Ok { .. })));
        assert!(matches!(conntrack(&facts), Ok(Outcome::Skipped { .. })));
        put(&facts, "/proc/sys/net/netfilter/nf_conntrack_max", "1000\n");
        put(&facts, "/proc/sys/net/netfilter/nf_conntrack_count", "950\n");
        assert!(matches!(conntrack(&facts), Ok(Outcome::Fail { .. })));
    }
}
