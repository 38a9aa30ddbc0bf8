//! Bad input by name: each gives its reason, names what to look at, and leaves every other node as it was.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod model;

use model::cluster::{decided, fresh, ip, key, local, name, net, node, set, set_key, v4, v6, view};
use wg_overlay_mesh::{
    Advertisement, AdvertisementError, ClusterView, EndpointError, KeyError, Local, LocalProblem, MtuSetting,
    NodeRecord, Reason, Resolved, annotation, decide,
};

const BAD: u8 = 3;

/// Changes `worker-3` and asserts that it alone is refused, with just this reason, which must name what to look at.
fn refused(change: impl FnOnce(&mut NodeRecord), expected: Reason, naming: &str) {
    refused_in(&local(), view(1..=5), change, expected, naming);
}

fn refused_in(
    local: &Local,
    mut nodes: ClusterView,
    change: impl FnOnce(&mut NodeRecord),
    expected: Reason,
    naming: &str,
) {
    change(nodes.get_mut(&name(BAD)).unwrap());
    let decision = decided(local, &nodes, &fresh());
    let reason =
        &decision.refusals.get(&name(BAD)).unwrap_or_else(|| panic!("taken, not {expected:?}")).reason;
    assert_eq!(*reason, expected);
    assert_eq!(decision.refusals.len(), 1, "{:?}", decision.refusals);
    let message = reason.to_string();
    assert!(message.contains(naming), "{message:?} doesn't name {naming:?}");
    assert!((10..250).contains(&message.len()) && !message.contains(char::is_control), "{message}");
    // all but the endpoints that pods may not send to is as if the Node weren't there
    nodes.remove(&name(BAD));
    let mut without = decided(local, &nodes, &fresh()).desired;
    without.firewall.endpoints.clone_from(&decision.desired.firewall.endpoints);
    assert_eq!(decision.desired, without);
}

fn annotated(name: &'static str, value: &str, error: AdvertisementError) {
    refused(|record| set(record, name, value), Reason::Annotation(error), name);
}

#[test]
fn keys() {
    let bad = |value: &str, error| {
        let annotation = annotation::PUBLIC_KEY;
        annotated(annotation, value, AdvertisementError::PublicKey { annotation, error });
    };
    bad("", KeyError::Malformed(0));
    bad("c2hvcnQ=", KeyError::Malformed(8));
    bad("not base64 at all, and 44 characters long..", KeyError::Malformed(43));
    bad(&"QUFB".repeat(11), KeyError::Malformed(44)); // 33 bytes
    bad("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", KeyError::LowOrder);
    bad("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", KeyError::LowOrder);
    annotated(
        annotation::PUBLIC_KEY,
        &"A".repeat(10_000),
        AdvertisementError::TooLong(annotation::PUBLIC_KEY),
    );
    refused(|r| set_key(r, key(1)), Reason::OwnKey, "Remove its key file");
    let none = Reason::Annotation(AdvertisementError::NoPublicKey);
    refused(|r| r.annotations.clear(), none, "agent");
}

#[test]
fn a_key_that_another_node_is_programmed_with() {
    let mut observed = fresh();
    let mut nodes = view(1..=5);
    let mut local = local();
    let before = decided(&local, &nodes, &observed);
    model::kernel::converge(&before.desired, &mut observed);
    local.holders = before.holders;
    set_key(nodes.get_mut(&name(BAD)).unwrap(), key(4));
    let decision = decided(&local, &nodes, &observed);
    let reason = &decision.refusals[&name(BAD)].reason;
    assert_eq!(*reason, Reason::DuplicateKey { holder: Some(name(4)) });
    assert!(reason.to_string().contains(&name(4)) && reason.to_string().contains("Remove its key file"));
    assert_eq!(decision.refusals.len(), 1);
}

#[test]
fn overlay_addresses() {
    let malformed = || AdvertisementError::OverlayIps(annotation::OVERLAY_IPS);
    for value in
        ["", "10.244.3.1,", "::ffff:10.244.3.1", "224.0.0.1", "127.0.0.1", "169.254.3.1", "10.244.3.0/24"]
    {
        annotated(annotation::OVERLAY_IPS, value, malformed());
    }
    for outside in ["10.244.4.1", "192.0.2.4", "10.96.0.1"] {
        let reason = Reason::OverlayIpOutside(ip(outside));
        refused(|r| set(r, annotation::OVERLAY_IPS, outside), reason, outside);
    }
    // a configured overlay prefix opens no way into the pod networks, nor to what is reserved
    let mut wide = local();
    wide.settings.overlay_cidrs = model::cluster::nets(["10.0.0.0/8"]);
    for outside in ["10.244.77.1", "10.96.0.1"] {
        let change = |r: &mut NodeRecord| set(r, annotation::OVERLAY_IPS, outside);
        refused_in(&wide, view(1..=5), change, Reason::OverlayIpOutside(ip(outside)), outside);
    }
}

#[test]
fn numbers() {
    for (annotation, min, max, values) in [
        (annotation::LISTEN_PORT, 1, 65535, ["0", "65536", "-1", ""]),
        (annotation::MTU, 576, 65535, ["575", "70000", "1420.5", ""]),
        (annotation::PERSISTENT_KEEPALIVE, 0, 65535, ["65536", "25s", "-1", ""]),
    ] {
        for value in values {
            annotated(annotation, value, AdvertisementError::Number { annotation, min, max });
        }
    }
}

#[test]
fn endpoints() {
    let bad =
        |value: &str, error| annotated(annotation::ENDPOINT, value, AdvertisementError::Endpoint(error));
    for host in ["224.0.0.9", "127.0.0.1", "169.254.0.1", "0.0.0.0", "255.255.255.255"] {
        bad(&format!("{host}:51820"), EndpointError::Unroutable(ip(host)));
    }
    for host in ["ff02::1", "::1", "fe80::1", "::", "::ffff:192.0.2.1"] {
        bad(&format!("[{host}]:51820"), EndpointError::Unroutable(ip(host)));
    }
    bad("192.0.2.3:0", EndpointError::Port);
    bad("edge.example.com:65536", EndpointError::Port);
    bad("", EndpointError::Malformed);
    bad("not a name", EndpointError::Malformed);
    let long = "x".repeat(10_000);
    annotated(annotation::ENDPOINT, &long, AdvertisementError::TooLong(annotation::ENDPOINT));

    for inside in ["10.244.3.7", "10.244.200.1", "fd00:244::9"] {
        let reason = || Reason::EndpointInTunnel(ip(inside));
        refused(|r| set(r, annotation::ENDPOINT, inside), reason(), inside);
        refused(|r| r.internal_ips = vec![inside.to_owned()], reason(), inside);
    }
    for own in ["192.0.2.1", "2001:db8::1"] {
        let reason = || Reason::EndpointIsOwn(ip(own));
        refused(|r| set(r, annotation::ENDPOINT, own), reason(), own);
        refused(|r| r.internal_ips = vec![own.to_owned()], reason(), own);
    }
    let mut overlay = local();
    overlay.settings.overlay_cidrs = model::cluster::nets(["100.64.0.0/16"]);
    let change = |r: &mut NodeRecord| set(r, annotation::ENDPOINT, "100.64.0.9:51820");
    refused_in(&overlay, view(1..=5), change, Reason::EndpointInTunnel(ip("100.64.0.9")), "100.64.0.9");
}

#[test]
fn a_name_that_resolves_into_the_tunnel() {
    let mut nodes = view(1..=5);
    set(nodes.get_mut(&name(BAD)).unwrap(), annotation::ENDPOINT, "edge.example.com");
    let answers = |ips: &[&str]| {
        let ips = ips.iter().map(|text| ip(text)).collect();
        decide(&local(), &nodes, &Resolved::from([("edge.example.com".to_owned(), ips)]), &fresh()).unwrap()
    };
    assert_eq!(
        answers(&["10.244.4.7"]).refusals[&name(BAD)].reason,
        Reason::EndpointInTunnel(ip("10.244.4.7"))
    );
    assert_eq!(answers(&["192.0.2.1"]).refusals[&name(BAD)].reason, Reason::EndpointIsOwn(ip("192.0.2.1")));
    let good = answers(&["127.0.0.1", "203.0.113.7"]);
    assert_eq!(good.desired.peers[&key(BAD)].endpoint.unwrap().0, "203.0.113.7:51820".parse().unwrap());
    let unresolved = answers(&[]);
    assert_eq!(unresolved.unresolved[&name(BAD)], "edge.example.com");
    assert!(unresolved.refusals.is_empty());
}

#[test]
fn nodes_without_addresses() {
    let cure = annotation::ENDPOINT;
    refused(|r| r.internal_ips.clear(), Reason::NoEndpoint, cure);
    refused(|r| r.internal_ips = vec!["not an address".to_owned()], Reason::NoEndpoint, cure);
    refused(
        |r| r.internal_ips = vec!["fe80::3".to_owned(), "127.0.0.1".to_owned()],
        Reason::NoEndpoint,
        cure,
    );
    // a family without a route is as good as none
    let mut v4_only = fresh();
    v4_only.underlay.routes.retain(|r| r.destination.addr().is_ipv4());
    let mut nodes = view(1..=5);
    nodes.get_mut(&name(BAD)).unwrap().internal_ips.remove(0);
    assert_eq!(decided(&local(), &nodes, &v4_only).refusals[&name(BAD)].reason, Reason::NoEndpoint);
    nodes.get_mut(&name(BAD)).unwrap().external_ips = vec!["203.0.113.7".to_owned()];
    let peer = decided(&local(), &nodes, &v4_only).desired.peers.remove(&key(BAD)).unwrap();
    assert_eq!((peer.endpoint.unwrap().0.ip(), peer.keepalive), (ip("203.0.113.7"), 25));
}

#[test]
fn pod_cidrs() {
    let cidr = |text: &'static str| move |r: &mut NodeRecord| r.pod_cidrs = vec![text.to_owned()];
    let overlaps = |text: &'static str, what: &str| {
        refused(cidr(text), Reason::PodCidrOverlaps(net(text), what.to_owned()), what);
    };
    refused(|r| r.pod_cidrs.clear(), Reason::NoPodCidr, "--allocate-node-cidrs");
    refused(cidr("10.244.3.0"), Reason::MalformedPodCidr("10.244.3.0".to_owned()), "10.244.3.0");
    refused(cidr("0.0.0.0/0"), Reason::PodCidrOutside(net("0.0.0.0/0")), "0.0.0.0/0");
    refused(cidr("::/0"), Reason::PodCidrOutside(net("::/0")), "::/0");
    refused(cidr("192.0.2.0/24"), Reason::PodCidrOutside(net("192.0.2.0/24")), "podCIDRs");
    refused(cidr("10.244.0.0/16"), Reason::PodCidrTooWide(net("10.244.0.0/16"), 24), "/24");
    refused(cidr("fd00:244::/60"), Reason::PodCidrTooWide(net("fd00:244::/60"), 64), "/64");
    overlaps("10.244.250.0/24", "the API server 10.244.250.6/32");
    overlaps("10.244.251.0/24", "10.244.251.0/28 on link lab0");
    let twice = |r: &mut NodeRecord| r.pod_cidrs = vec!["10.244.3.0/24".into(), "10.244.3.128/25".into()];
    let what = "its own 10.244.3.0/24".to_owned();
    refused(twice, Reason::PodCidrOverlaps(net("10.244.3.128/25"), what.clone()), &what);
    for (held, by) in [(v4(1), 1), (v6(2), 2), (v4(2), 2)] {
        let change = |r: &mut NodeRecord| {
            r.pod_cidrs = vec![held.to_string()];
            r.annotations.remove(annotation::OVERLAY_IPS);
        };
        refused(change, Reason::DuplicatePodCidr(held, name(by)), &name(by));
    }
}

#[test]
fn a_pod_cidr_over_an_older_nodes_address() {
    let mut nodes = view(1..=5);
    // worker-2 has a pod network's address besides, and is reached by another
    nodes.get_mut(&name(2)).unwrap().internal_ips.insert(0, "10.244.3.77".to_owned());
    let what = "the address 10.244.3.77 of Node worker-2".to_owned();
    refused_in(&local(), nodes.clone(), |_| {}, Reason::PodCidrOverlaps(v4(3), what.clone()), &what);
    // a younger one keeps nobody out
    nodes.insert(name(2), NodeRecord { created: 5000, ..nodes[&name(2)].clone() });
    assert!(decided(&local(), &nodes, &fresh()).refusals.is_empty());
}

#[test]
fn reserved_prefixes_count_where_they_meet_the_pod_networks() {
    let mut local = local();
    local.settings.reserved.push((net("10.244.64.0/18"), "the service range".to_owned()));
    let reason = Reason::PodCidrOverlaps(v4(70), "the service range 10.244.64.0/18".to_owned());
    let change = |r: &mut NodeRecord| {
        r.pod_cidrs = vec![v4(70).to_string()];
        r.annotations.remove(annotation::OVERLAY_IPS);
    };
    refused_in(&local, view(1..=5), change, reason, "the service range");
}

#[test]
fn ipv6_never_gets_a_link_below_1280() {
    for (mtu, underlay) in
        [(MtuSetting::Fixed(1000), 1500), (MtuSetting::Fixed(0), 1500), (MtuSetting::Auto, 900)]
    {
        let mut local = local();
        let mut observed = fresh();
        local.settings.mtu = mtu;
        observed.underlay.links.get_mut(&2).unwrap().mtu = underlay;
        let mut nodes = view(1..=3);
        set(nodes.get_mut(&name(2)).unwrap(), annotation::MTU, "600");
        let desired = decided(&local, &nodes, &observed).desired;
        assert_eq!((desired.device.mtu, desired.bridge.mtu), (1280, 1280));
        let mtus = [v4(2), v6(2)].map(|net| desired.routes[&net].mtu);
        assert_eq!(mtus, [Some(600), None], "the route of IPv6 has no less than 1280");
    }
}

#[test]
fn what_this_node_itself_can_not_do_is_said() {
    let problem = |local: &Local, nodes: &ClusterView| {
        decide(local, nodes, &Resolved::new(), &fresh()).expect_err("no problem was found")
    };
    let own = |cidrs: &[&str]| {
        let record = NodeRecord { pod_cidrs: cidrs.iter().map(ToString::to_string).collect(), ..node(1) };
        ClusterView::from([(name(1), record)])
    };
    let unusable = |text: &str| LocalProblem::UnusablePodCidr(text.to_owned());
    for (found, expected, naming) in [
        (problem(&local(), &view([2])), LocalProblem::NoNode(name(1)), "worker-1"),
        (problem(&local(), &own(&[])), LocalProblem::NoPodCidr, "--allocate-node-cidrs"),
        (problem(&local(), &own(&["10.244.1.0"])), unusable("10.244.1.0"), "10.244.1.0"),
        (problem(&local(), &own(&["10.244.1.0/32"])), unusable("10.244.1.0/32"), "10.244.1.0/32"),
        (problem(&local(), &own(&["0.0.0.0/0"])), LocalProblem::PodCidrOutside(net("0.0.0.0/0")), "podCIDRs"),
    ] {
        assert_eq!(found, expected);
        assert!(found.to_string().contains(naming), "{found}");
    }
    let mut unknown = local();
    unknown.settings.cluster_cidrs.clear();
    assert_eq!(problem(&unknown, &view([1])), LocalProblem::NoClusterCidrs);
}

#[test]
fn what_an_agent_publishes_is_taken() {
    let nodes = view(1..=5);
    assert!(nodes.values().all(|record| Advertisement::parse(&record.annotations).is_ok()));
    let decision = decided(&local(), &nodes, &fresh());
    assert!(decision.refusals.is_empty(), "{:?}", decision.refusals);
    assert_eq!(decision.desired.peers.len(), 4);
}
