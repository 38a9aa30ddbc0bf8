//! The links and ports: ours, those beneath, and what others left.

use wg_overlay_mesh::{
    BRIDGE, DEVICE, NEXT_DEVICE, ObservedDevice, ObservedState, UnderlayLink, WIREGUARD_OVERHEAD, next_port,
};

use super::{Facts, Found, fail, need, ok, skipped, warn};

pub(super) fn links(facts: &Facts) -> Found {
    let kernel = match &facts.kernel {
        Ok(kernel) => kernel,
        // the error names the link and the cure, or nft, which has its own check
        Err(error) if facts.nft.is_err() => return Ok(skipped(error)),
        Err(error) => return Ok(fail(error, "the agent goes on once it can read the kernel")),
    };
    let second = kernel.next.as_ref().map(|next| (NEXT_DEVICE, Some(next.device.up)));
    let wanted =
        [(DEVICE, kernel.device.as_ref().map(|d| d.up)), (BRIDGE, kernel.bridge.as_ref().map(|b| b.up))];
    let wrong: Vec<_> = wanted
        .into_iter()
        .chain(second)
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
    let kernel = facts.kernel.as_ref().ok();
    let first = kernel.and_then(|kernel| kernel.device.as_ref());
    let second = kernel.and_then(|kernel| Some(&kernel.next.as_ref()?.device));
    let look = |name, device: Option<&ObservedDevice>, port, holder: &Option<String>| match holder {
        _ if device.is_some_and(|device| device.listen_port == port) => {
            Ok(format!("{name} listens on UDP {port}"))
        }
        None => Ok(format!("nobody holds UDP {port}")),
        Some(holder) => Err(format!("UDP {port} is held by {holder}")),
    };
    let [holder, next_holder] = &facts.port_holders;
    let port = facts.config.listen_port;
    let cure = "stop it (a wg0 of the Go wg-overlay: ip link delete wg0), or set listenPort on this node";
    Ok(match (look(DEVICE, first, port, holder), look(NEXT_DEVICE, second, next_port(port), next_holder)) {
        (Ok(first), Ok(second)) => ok(format!("{first}, {second}")),
        (Err(cause), _) => fail(cause, cure),
        (Ok(_), Err(cause)) => warn(format!("{cause}: no key can change, here or at a peer"), cure),
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
    use std::collections::BTreeSet;

    use wg_overlay_mesh::ObservedBridge;

    use super::*;
    use crate::doctor::{
        Outcome,
        facts::tests::{device, facts, link, second_device},
    };

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
    fn each_port_is_ours_or_somebodys() {
        let (mut facts, _folder) = facts();
        assert!(matches!(udp_port(&facts), Ok(Outcome::Ok { .. })));
        facts.port_holders = [Some("the WireGuard device wg0 (wg show wg0)".into()), Some("dnsmasq".into())];
        assert!(matches!(udp_port(&facts), Ok(Outcome::Fail { cause, .. }) if cause.contains("wg0")));
        device(&mut facts, 1420);
        assert!(
            matches!(udp_port(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("51821 is held by dnsmasq"))
        );
        second_device(&mut facts);
        assert!(matches!(udp_port(&facts), Ok(Outcome::Ok { .. })));
    }

    #[test]
    fn a_second_device_need_not_be_there_and_must_be_up() {
        let (mut facts, _folder) = facts();
        device(&mut facts, 1420);
        let kernel = facts.kernel.as_mut().unwrap();
        kernel.bridge = Some(ObservedBridge {
            marked: true,
            up: true,
            mtu: 1420,
            addresses: BTreeSet::new(),
            netfilter: None,
        });
        assert!(matches!(links(&facts), Ok(Outcome::Ok { .. })));
        second_device(&mut facts);
        assert!(matches!(links(&facts), Ok(Outcome::Ok { .. })));
        facts.kernel.as_mut().unwrap().next.as_mut().unwrap().device.up = false;
        assert!(matches!(links(&facts), Ok(Outcome::Warn { cause, .. }) if cause == "wgo1 is down"));
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
