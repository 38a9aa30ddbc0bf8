//! The nftables table's text against golden files; `UPDATE_GOLDEN=1` writes them anew.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::{env, fs, path::PathBuf};

use wg_overlay_mesh::{Firewall, PORT_RULESET, TABLE, next_port, ruleset};

fn set<T: std::str::FromStr + Ord>(items: &[&str]) -> std::collections::BTreeSet<T> {
    items.iter().map(|i| i.parse().unwrap_or_else(|_| panic!("{i}"))).collect()
}

fn dual() -> Firewall {
    Firewall {
        cluster: set(&["10.244.0.0/16", "fd00:244::/56"]),
        overlay_ips: set(&["10.244.1.1", "fd00:244:0:1::1"]),
        non_masquerade: set(&[]),
        masquerade: true,
        fail_closed: true,
        listen_port: 51820,
        node_addresses: set(&["192.0.2.11", "2001:db8::11"]),
        endpoints: set(&["192.0.2.12:51820", "[2001:db8::12]:51820"]),
    }
}

fn v4_only() -> Firewall {
    Firewall { cluster: set(&["10.244.0.0/16"]), overlay_ips: set(&["10.244.1.1"]), ..dual() }
}

fn non_masquerade() -> Firewall {
    let non_masquerade = set(&["198.51.100.0/24", "10.0.0.0/8", "2001:db8:1::/48"]);
    // The overlay prefix lies partly in the pod prefix, and the port leaves more room above it.
    let cluster = set(&["10.244.0.0/16", "10.244.128.0/17", "172.31.0.0/24", "fd00:244::/56"]);
    Firewall { non_masquerade, cluster, listen_port: 4500, ..dual() }
}

fn compare(name: &str, firewall: &Firewall) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/firewall-{name}.txt"));
    let text = ruleset(firewall);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn dual_stack() {
    compare("dual", &dual());
}

#[test]
fn one_family_has_no_rules_of_the_other() {
    let v6 = Firewall { cluster: set(&["fd00:244::/56"]), overlay_ips: set(&["fd00:244:0:1::1"]), ..dual() };
    compare("v4", &v4_only());
    // but for the handshakes': the underlay may be of either family
    let of_pods = |firewall| {
        let text = ruleset(&firewall);
        text.lines().filter(|line| !line.contains("@initiations_")).collect::<String>()
    };
    assert!(!of_pods(v4_only()).contains("ip6 saddr"));
    assert!(!of_pods(v6).contains("ip saddr"));
}

#[test]
fn masquerade_off() {
    compare("masquerade-off", &Firewall { masquerade: false, ..dual() });
}

#[test]
fn fail_open() {
    compare("fail-open", &Firewall { fail_closed: false, ..dual() });
}

#[test]
fn destinations_that_see_pod_addresses() {
    compare("non-masquerade", &non_masquerade());
}

#[test]
fn unknown_pod_prefixes_still_guard_the_tunnel() {
    let none = Firewall { cluster: set(&[]), overlay_ips: set(&[]), ..dual() };
    compare("no-prefixes", &none);
}

#[test]
fn endpoints_are_kept_apart_from_the_text() {
    assert_eq!(ruleset(&dual()), ruleset(&Firewall { endpoints: set(&[]), ..dual() }));
}

#[test]
fn no_flow_is_given_the_tunnels_port() {
    for port in [1, 1023, 1024, 32767, 32768, 51820, 65535] {
        let text = ruleset(&Firewall { listen_port: port, ..dual() });
        let range = text.split("masquerade to :").nth(1).and_then(|t| t.split(' ').next()).unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
        assert!(first >= 1024 && last - first > 30000, "{port}: {range}");
        assert!(!(first..=last).contains(&port), "{port}: {range}");
        assert!(!(first..=last).contains(&next_port(port)), "{port}: {range}");
    }
}

/// What replaces a table puts each counter's value in its line.
#[test]
fn the_port_tables_counters_stand_as_the_others_do() {
    let declared = PORT_RULESET.lines().filter_map(|l| l.trim().strip_prefix("counter spoofed_"));
    let declared: Vec<&str> = declared.collect();
    assert_eq!(declared.len(), 5);
    assert!(declared.iter().all(|l| l.ends_with(" { packets 0 bytes 0 }")), "{declared:?}");
    assert!(PORT_RULESET.contains(&format!("table bridge {TABLE} {{")));
}
