//! The links and ports: ours, those beneath, and what others left.

use wg_overlay_mesh::{BRIDGE, DEVICE, ObservedState, UnderlayLink, WIREGUARD_OVERHEAD};

use super::{Facts, Outcome, fail, need, ok, skipped, warn};

type Found = Result<Outcome, Outcome>;

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

/// The underlay links that lead to anywhere.
pub(super) fn with_default_route(kernel: &ObservedState) -> Vec<&UnderlayLink> {
    let default = |index: u32| {
        kernel.underlay.routes.iter().any(|r| r.link == index && r.destination.prefix_len() == 0)
    };
    kernel.underlay.links.iter().filter(|(index, _)| default(**index)).map(|(_, link)| link).collect()
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
    use super::*;
    use crate::doctor::facts::tests::{device, facts, link};

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
    fn another_networks_links_are_named() {
        let (mut facts, _folder) = facts();
        link(&mut facts, 2, "eth0", 1500);
        assert!(matches!(leftovers(&facts), Ok(Outcome::Ok { .. })));
        link(&mut facts, 3, "cilium_host", 1500);
        assert!(matches!(leftovers(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("Cilium")));
    }
}
