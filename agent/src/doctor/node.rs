//! This node in its cluster: its configuration, its Node, the networks, its clock and identity.

use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use wg_overlay_mesh::{NodeRecord, annotation, overlaps};

use super::{Facts, Found, Outcome, facts::InCluster, fail, need, ok, skipped, warn};

pub(super) fn configuration(facts: &Facts) -> Found {
    let node = &facts.config.node_name;
    Ok(match &facts.config_problem {
        None => ok(format!("node {node}")),
        Some(problem) => warn(
            format!("{problem}; the defaults stand in for it, and {node} for the node's name"),
            "run it in the agent's pod, or name its file with --config, or the node with --node-name",
        ),
    })
}

/// What the API server says; why it can't be asked is told once.
fn asked(facts: &Facts) -> Result<&InCluster, Outcome> {
    facts.cluster.as_ref().map_err(|_| skipped("the API server can't be asked: see api-server"))
}

fn own_node(facts: &Facts) -> Result<&NodeRecord, Outcome> {
    let missing = || skipped(format!("there is no Node {}", facts.config.node_name));
    asked(facts)?.node.as_ref().ok_or_else(missing)
}

pub(super) fn api_server(facts: &Facts) -> Found {
    Ok(match &facts.cluster {
        Ok(cluster) if cluster.node.is_some() => ok("it answers, and knows this node"),
        Ok(_) => fail(
            format!("it answers, and has no Node {}", facts.config.node_name),
            "nodeName must be the name of this node's Node: kubectl get nodes",
        ),
        Err(error) => fail(
            format!("can't be asked: {error}"),
            "set apiServer where the kubernetes Service can't be reached yet; on a host, set KUBECONFIG",
        ),
    })
}

/// What can be parsed of the Node's PodCIDRs.
fn pod_cidrs(facts: &Facts) -> Result<Vec<IpNet>, Outcome> {
    Ok(own_node(facts)?.pod_cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()).collect())
}

pub(super) fn pod_cidr(facts: &Facts) -> Found {
    let node = own_node(facts)?;
    Ok(if node.pod_cidrs.is_empty() {
        fail(
            "the Node has no spec.podCIDRs",
            "kube-controller-manager with --allocate-node-cidrs --cluster-cidr=…; is its range used up?",
        )
    } else {
        ok(node.pod_cidrs.join(", "))
    })
}

pub(super) fn pod_networks(facts: &Facts) -> Found {
    let configured = &facts.config.pod_cidrs;
    let networks = if configured.is_empty() {
        let cluster = asked(facts)?;
        cluster.networks.as_ref().map(|n| n.pods.clone()).unwrap_or_default()
    } else {
        configured.clone()
    };
    if networks.is_empty() {
        return Ok(fail(
            "the cluster's pod networks are unknown: kubeadm recorded none that is readable here",
            "set podCIDRs",
        ));
    }
    let text: Vec<_> = networks.iter().map(ToString::to_string).collect();
    let own = own_node(facts).ok().map(|_| pod_cidrs(facts)).transpose()?.unwrap_or_default();
    let outside = own.iter().find(|cidr| !networks.iter().any(|net| net.contains(*cidr)));
    Ok(match outside {
        Some(cidr) => fail(
            format!("this node's {cidr} is outside the pod networks {}", text.join(", ")),
            "podCIDRs must hold every node's; it is kube-controller-manager's --cluster-cidr",
        ),
        None => ok(text.join(", ")),
    })
}

pub(super) fn cidr_overlap(facts: &Facts) -> Found {
    let own = pod_cidrs(facts)?;
    let kernel = need(&facts.kernel)?;
    let local = kernel.underlay.links.values().flat_map(|link| {
        link.addresses.iter().map(move |net| (net.trunc(), format!("{net} of link {}", link.name)))
    });
    let services = asked(facts)?.networks.iter().flat_map(|n| &n.services);
    let services = services.map(|net| (*net, format!("the service network {net}")));
    let clash = local.chain(services).find(|(net, _)| own.iter().any(|cidr| overlaps(cidr, net)));
    Ok(match clash {
        Some((_, what)) => fail(
            format!("this node's PodCIDR overlaps {what}"),
            "choose a pod network that is used nowhere else, or remove what another network left",
        ),
        None => ok("none with this node's links or the services"),
    })
}

/// Another's route within the pod networks takes the packets from ours: a longer prefix, or the same and a smaller
/// metric.
pub(super) fn foreign_routes(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let ours: Vec<_> = kernel.unreachable.iter().chain(kernel.routes.keys()).collect();
    if ours.is_empty() {
        return Ok(skipped("there are no routes of ours yet"));
    }
    let name = |link: u32| kernel.underlay.links.get(&link).map_or("?", |l| l.name.as_str());
    let shadowing =
        kernel.underlay.routes.iter().filter(|r| ours.iter().any(|net| net.contains(&r.destination)));
    let found: Vec<_> = shadowing.map(|r| format!("{} by {}", r.destination, name(r.link))).collect();
    Ok(if found.is_empty() {
        ok("none within the pod networks")
    } else {
        fail(
            format!("routes of somebody else lead pod packets away: {}", found.join(", ")),
            "remove the other network, or: ip route delete PREFIX dev LINK",
        )
    })
}

pub(super) fn annotations(facts: &Facts) -> Found {
    let kernel = need(&facts.kernel)?;
    let node = own_node(facts)?;
    let device = kernel.device.as_ref().and_then(|d| d.public_key);
    let Some(device) = device else { return Ok(skipped("there is no device with a key yet")) };
    let cure = "the agent writes it, if it runs and may patch nodes/status (RBAC, ValidatingAdmissionPolicy)";
    Ok(match node.annotations.get(annotation::PUBLIC_KEY) {
        Some(key) if *key == device.to_string() => ok("the Node says the device's key"),
        Some(_) => fail("the Node says another key than the device has: no peer accepts this node", cure),
        None => fail("the Node says no key: no peer knows this node", cure),
    })
}

/// WireGuard refuses a handshake whose timestamp is not later than the last (paper, section 5.1), so a clock that was
/// set back keeps a node from its peers until it has caught up.
pub(super) fn clock(facts: &Facts) -> Found {
    let made = |path: &std::path::Path| facts.own.path(path).metadata().and_then(|m| m.modified()).ok();
    let key = facts.config.key_file.as_deref().and_then(made);
    let created = facts.cluster.as_ref().ok().and_then(|c| c.node.as_ref()).map(|n| n.created);
    let created = created.and_then(|s| u64::try_from(s).ok()).filter(|s| *s < i64::MAX as u64);
    let created = created.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    let past = [(key, "its key was written"), (created, "its Node was created")];
    let ahead =
        past.iter().filter_map(|(time, what)| Some((time.as_ref()?.duration_since(facts.now).ok()?, what)));
    Ok(match ahead.max() {
        Some((by, what)) if by > SKEW => fail(
            format!(
                "the clock is {} earlier than when {what}: peers refuse handshakes of the past",
                crate::status::duration(by.as_secs())
            ),
            "set the clock (timedatectl, chronyc makestep); if it had been ahead before, a new key helps: remove the key file and restart the agent",
        ),
        _ if key.is_none() && created.is_none() => {
            skipped("there is nothing to compare it with: no key file, no Node")
        }
        _ => ok("later than the key file and the Node"),
    })
}

/// Clocks of a cluster differ by less.
const SKEW: Duration = Duration::from_secs(60);

pub(super) fn machine_id(facts: &Facts) -> Found {
    let text = facts.own.read("/etc/machine-id").unwrap_or_default();
    Ok(if text.trim().is_empty() {
        warn(
            "/etc/machine-id is missing or empty: the key of a cloned disk is not told from this node's own",
            "systemd-machine-id-setup, or dbus-uuidgen > /etc/machine-id; then restart the agent",
        )
    } else {
        ok("there")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wg_overlay_mesh::{UnderlayLink, UnderlayRoute};

    use super::*;
    use crate::{
        cluster::ClusterNetworks,
        doctor::facts::tests::{facts, put},
    };

    fn with_node(facts: &mut Facts) -> &mut NodeRecord {
        let net = |text: &str| BTreeSet::from([text.parse().unwrap()]);
        let networks = ClusterNetworks { pods: net("10.244.0.0/16"), services: net("10.96.0.0/12") };
        let node = NodeRecord { pod_cidrs: vec!["10.244.1.0/24".into()], ..NodeRecord::default() };
        facts.cluster = Ok(InCluster { node: Some(node), networks: Some(networks) });
        facts.cluster.as_mut().unwrap().node.as_mut().unwrap()
    }

    #[test]
    fn without_an_api_server_what_needs_it_is_skipped() {
        let (mut facts, _folder) = facts();
        facts.cluster = Err("refused".into());
        assert!(matches!(api_server(&facts), Ok(Outcome::Fail { .. })));
        for check in [pod_cidr, pod_networks, cidr_overlap, annotations] {
            assert!(matches!(check(&facts), Err(Outcome::Skipped { .. })));
        }
    }

    #[test]
    fn podcidrs_must_be_there_inside_and_used_nowhere_else() {
        let (mut facts, _folder) = facts();
        with_node(&mut facts);
        for check in [pod_cidr, pod_networks, cidr_overlap] {
            assert!(matches!(check(&facts), Ok(Outcome::Ok { .. })));
        }
        with_node(&mut facts).pod_cidrs = vec!["10.96.1.0/24".into()];
        assert!(matches!(pod_networks(&facts), Ok(Outcome::Fail { .. })));
        assert!(matches!(cidr_overlap(&facts), Ok(Outcome::Fail { cause, .. }) if cause.contains("service")));
        with_node(&mut facts).pod_cidrs.clear();
        assert!(matches!(pod_cidr(&facts), Ok(Outcome::Fail { .. })));
    }

    #[test]
    fn another_route_within_ours_fails_and_a_wider_one_does_not() {
        let (mut facts, _folder) = facts();
        let kernel = facts.kernel.as_mut().unwrap();
        kernel.unreachable.insert("10.244.0.0/16".parse().unwrap());
        kernel
            .underlay
            .links
            .insert(7, UnderlayLink { name: "cni0".into(), mtu: 1500, addresses: BTreeSet::new() });
        let route = |text: &str| UnderlayRoute { destination: text.parse().unwrap(), link: 7, metric: 0 };
        kernel.underlay.routes = vec![route("0.0.0.0/0"), route("10.0.0.0/8")];
        assert!(matches!(foreign_routes(&facts), Ok(Outcome::Ok { .. })));
        facts.kernel.as_mut().unwrap().underlay.routes.push(route("10.244.2.0/24"));
        assert!(matches!(foreign_routes(&facts), Ok(Outcome::Fail { cause, .. }) if cause.contains("cni0")));
    }

    #[test]
    fn a_clock_before_the_key_or_the_node_fails() {
        let (mut facts, _folder) = facts();
        assert!(matches!(clock(&facts), Ok(Outcome::Skipped { .. })));
        put(&facts, "/var/lib/wg-overlay/private-key", "x");
        assert!(matches!(clock(&facts), Ok(Outcome::Ok { .. })));
        facts.now -= Duration::from_secs(86_400);
        assert!(matches!(clock(&facts), Ok(Outcome::Fail { cause, .. }) if cause.contains("key")));
    }

    #[test]
    fn an_empty_machine_id_warns() {
        let (facts, _folder) = facts();
        put(&facts, "/etc/machine-id", "\n");
        assert!(matches!(machine_id(&facts), Ok(Outcome::Warn { .. })));
        put(&facts, "/etc/machine-id", "abc\n");
        assert!(matches!(machine_id(&facts), Ok(Outcome::Ok { .. })));
    }
}
