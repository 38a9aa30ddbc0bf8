//! The table on the bridge's ports and its sets: applied, observed, filled from the pods that are there.

use std::fs;

use wg_overlay_cni::store;
use wg_overlay_mesh::{PORT_RULESET, Step};

use crate::{Test, lab::Lab};

pub const TESTS: &[Test] = &[
    ("the_port_table_is_observed_as_it_was_applied", observed),
    ("any_change_of_the_port_table_is_seen", changes),
    ("the_sets_are_filled_from_the_pods_that_are_there", filled),
    ("what_no_pod_stands_behind_is_removed", left_over),
    ("nothing_is_removed_while_a_pod_is_attached", attaching),
    ("a_pod_with_macs_of_its_own_is_taken_as_it_is", earlier),
    ("the_port_tables_counters_survive", counters),
];

fn elements(lab: &Lab, set: &str) -> String {
    lab.node.sh(&format!("nft list set bridge wg-overlay {set}"))
}

/// How many elements the three sets hold of each pod.
fn held(lab: &Lab) -> [[usize; 3]; 2] {
    let sets = ["pods", "pods4", "pods6"].map(|set| elements(lab, set));
    lab.pod_links().map(|link| sets.each_ref().map(|text| text.matches(&link).count()))
}

const WHOLE: [usize; 3] = [1, 1, 2];

fn fill(lab: &Lab) {
    lab.nft(|nft| nft.fill_ports().unwrap());
}

fn attached() -> Lab {
    let lab = Lab::new();
    lab.attach_pods();
    lab
}

fn observed() {
    let lab = attached();
    assert_eq!(lab.observe().port_guard, None);
    fill(&lab);
    assert_eq!(lab.observe().port_guard, None, "nothing is made where there is no table");
    for _ in 0..2 {
        lab.apply(&Step::SetPortGuard);
        assert_eq!(lab.observe().port_guard.as_deref(), Some(PORT_RULESET));
        assert_eq!(held(&lab), [WHOLE; 2]);
    }
    lab.node.sh("nft flush set bridge wg-overlay pods4");
    assert_eq!(lab.observe().port_guard.as_deref(), Some(PORT_RULESET), "elements are no part of it");
    for _ in 0..2 {
        lab.apply(&Step::RemovePortGuard);
        assert_eq!(lab.observe().port_guard, None);
    }
    assert!(!lab.state_dir.join("nftables-bridge.json").exists());
}

fn changes() {
    let lab = attached();
    for change in [
        "flush chain bridge wg-overlay pods_ports",
        "insert rule bridge wg-overlay from_pod accept",
        "delete chain bridge wg-overlay pods_ports",
        "add table bridge wg-overlay { flags dormant; }",
    ] {
        lab.apply(&Step::SetPortGuard);
        lab.node.sh(&format!("nft '{change}'"));
        assert_eq!(lab.observe().port_guard.as_deref(), Some(""), "{change}");
    }
    lab.node.sh("nft flush ruleset");
    assert_eq!(lab.observe().port_guard, None);
}

fn filled() {
    let lab = attached();
    lab.apply(&Step::SetPortGuard);
    for set in ["pods", "pods4", "pods6"] {
        lab.node.sh(&format!("nft flush set bridge wg-overlay {set}"));
    }
    assert_eq!(held(&lab), [[0; 3]; 2]);
    fill(&lab);
    assert_eq!(held(&lab), [WHOLE; 2]);
    lab.nft(|nft| {
        let observe = || nft.observe_changed(51820).unwrap();
        assert!(observe().is_some(), "the first time");
        lab.node.sh("nft flush set bridge wg-overlay pods");
        assert!(observe().is_some());
        nft.fill_ports().unwrap();
        assert_eq!(observe(), None, "our own change");
    });
}

fn left_over() {
    let lab = attached();
    lab.apply(&Step::SetPortGuard);
    lab.node.sh("nft add element bridge wg-overlay pods '{ \"wgpffffffffffff\" . 02:00:00:00:00:01 }'");
    fs::remove_file(lab.state_dir.join("ipam/holders/pod_b:eth0")).unwrap();
    fill(&lab);
    assert_eq!(held(&lab), [WHOLE, [0; 3]]);
    assert!(!elements(&lab, "pods").contains("wgpffffffffffff"));
}

fn attaching() {
    let lab = attached();
    lab.apply(&Step::SetPortGuard);
    fs::remove_file(lab.state_dir.join("ipam/holders/pod_b:eth0")).unwrap();
    lab.node.sh("nft flush set bridge wg-overlay pods4");
    let adding = store(&lab.state_dir).begin_attach().unwrap();
    fill(&lab);
    assert_eq!(held(&lab), [WHOLE, [1, 0, 2]], "what lacks is added, nothing else is touched");
    drop(adding);
    fill(&lab);
    assert_eq!(held(&lab), [WHOLE, [0; 3]]);
}

/// Attached by a version that chose both MACs at random.
fn earlier() {
    let lab = attached();
    let [link, _] = lab.pod_links();
    lab.node.sh(&format!("ip link set {link} address 02:00:00:00:00:aa"));
    lab.pod_a.sh("ip link set eth0 address 02:00:00:00:00:bb");
    lab.apply(&Step::SetPortGuard);
    assert_eq!(held(&lab), [WHOLE; 2]);
    assert!(elements(&lab, "pods").contains(&format!(r#""{link}" . 02:00:00:00:00:bb"#)));
    assert!(elements(&lab, "pods6").contains("0xfe80000000000000000000fffe0000bb"));
    // the bridge's own MAC was that of the port
    lab.pod_b.sh("ip neigh flush all");
    lab.await_neighbours();
}

fn counters() {
    let lab = attached();
    lab.apply(&Step::SetPortGuard);
    lab.node.sh("nft flush set bridge wg-overlay pods");
    lab.pod_a.sh("ip link set eth0 address 02:00:00:00:00:77; ping -n -c1 -W1 10.244.1.1 || true");
    let before = lab.counter("spoofed_mac");
    assert_ne!(before, 0);
    lab.apply(&Step::SetPortGuard);
    assert!(lab.counter("spoofed_mac") >= before);
}
