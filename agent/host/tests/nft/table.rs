//! Applying and observing our own table.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::PathBuf};

use wg_overlay_host::NftError;
use wg_overlay_mesh::{Firewall, Link, Step, ruleset};

use crate::{
    Test,
    lab::{FAMILIES, Lab, firewall},
    netns::{Netns, at},
};

pub const TESTS: &[Test] = &[
    ("nft_takes_every_golden_file", golden_files),
    ("observe_after_apply_finds_nothing_to_do", observe_after_apply),
    ("any_change_by_others_is_seen", changes_are_seen),
    ("endpoints_change_without_the_table", endpoints_change),
    ("endpoints_of_thousands_of_nodes_change", many_endpoints),
    ("only_what_others_change_is_read_again", read_again),
    ("what_others_add_meanwhile_never_passes_for_ours", spoiled),
    ("counters_survive_a_replacement", counters_survive),
    ("a_torn_record_means_to_apply_again", torn_record),
    ("remove_takes_the_table_and_its_record", remove),
    ("a_missing_program_is_named_with_its_package", missing_program),
    ("other_steps_are_refused", other_steps),
];

fn golden_files() {
    let mesh = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../mesh");
    let golden = fs::read_dir(mesh.join("tests/golden")).unwrap().map(|entry| entry.unwrap().path());
    let golden = golden.filter(|file| file.file_name().unwrap().to_str().unwrap().starts_with("firewall-"));
    let files: Vec<PathBuf> = golden.chain([mesh.join("src/firewall/ports.nft")]).collect();
    assert!(files.len() >= 6, "{files:?}");
    let netns = Netns::new();
    for file in files {
        let file = file.display();
        // Twice for real: the second time it replaces itself. The image has none of these lists of names.
        netns.sh(&format!(
            "unshare --mount sh -euc '
                for list in protocols services ethertypes; do
                    [ ! -e /etc/$list ] || mount --bind /dev/null /etc/$list
                done
                nft -c -f {file}; nft -f {file}; nft -f {file}'
            nft list tables | grep wg-overlay; nft flush ruleset"
        ));
    }
}

fn endpoints() -> Firewall {
    let endpoints = ["192.0.2.99:51820", "192.0.2.98:51821", "[2001:db8::99]:51820"];
    Firewall { endpoints: endpoints.map(|e| e.parse().unwrap()).into(), ..firewall() }
}

fn observe_after_apply() {
    let lab = Lab::new();
    assert_eq!(lab.observe().firewall, None);
    for firewall in [firewall(), endpoints(), Firewall { masquerade: false, ..endpoints() }] {
        lab.set_firewall(&firewall);
        let found = lab.observe().firewall.unwrap();
        assert_eq!(found.ruleset, ruleset(&firewall));
        assert_eq!(found.endpoints, firewall.endpoints);
        // Passing packets change counters, which are no difference.
        lab.pod_a.send(&at(FAMILIES[0].pod_a, 0), &at(FAMILIES[0].node, 51820));
        assert_ne!(lab.counter("pod_to_tunnel"), 0);
        assert_eq!(lab.observe().firewall.unwrap(), found);
    }
    assert!(lab.observe().host_chains.is_empty());
    assert!(lab.observe().warnings.is_empty());
}

fn changes_are_seen() {
    let lab = Lab::new();
    for change in [
        "flush table inet wg-overlay",
        "flush chain inet wg-overlay raw_output",
        "add rule inet wg-overlay source_nat accept",
        "insert rule inet wg-overlay plaintext_outbound accept",
        "add element inet wg-overlay cluster4 { 10.9.0.0/16 }",
        "flush set inet wg-overlay cluster6",
        "add chain inet wg-overlay raw_output { policy drop; }",
        "delete chain inet wg-overlay plaintext_inbound",
        "add table inet wg-overlay { flags dormant; }",
        "flush ruleset; add table inet wg-overlay",
    ] {
        lab.set_firewall(&endpoints());
        lab.node.sh(&format!("nft '{change}'"));
        assert_eq!(lab.observe().firewall.unwrap().ruleset, "", "{change}");
    }
    lab.node.sh("nft flush ruleset");
    assert_eq!(lab.observe().firewall, None);
    lab.set_firewall(&endpoints());
    assert_eq!(lab.observe().firewall.unwrap().ruleset, ruleset(&endpoints()));
}

fn endpoints_change() {
    let lab = Lab::new();
    lab.set_firewall(&endpoints());
    let add = ["203.0.113.1:51820", "[2001:db8::1]:1"].map(|e| e.parse().unwrap());
    let remove = ["192.0.2.98:51821", "[2001:db8::99]:51820"].map(|e| e.parse().unwrap());
    lab.apply(&Step::GuardEndpoints { add: add.into(), remove: remove.into() });
    let found = lab.observe().firewall.unwrap();
    assert_eq!(found.ruleset, ruleset(&endpoints()));
    let mut wanted = endpoints().endpoints;
    wanted.retain(|e| !remove.contains(e));
    wanted.extend(add);
    assert_eq!(found.endpoints, wanted);
    // What is missing is an error, and nothing of the step is done.
    let step = Step::GuardEndpoints { add: remove.into(), remove: remove.into() };
    lab.nft(|nft| nft.apply(&step).unwrap_err());
    assert_eq!(lab.observe().firewall.unwrap().endpoints, wanted);
}

/// Sockets of both families, more than a transaction holds.
fn many() -> BTreeSet<SocketAddr> {
    let v4 = (0..2000u16).map(|n| SocketAddr::from(([192, 0, 2, 7], 1024 + n)));
    let v6 = (0..2000u16).map(|n| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 51820)));
    v4.chain(v6).collect()
}

fn many_endpoints() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    let none = BTreeSet::new();
    lab.apply(&Step::GuardEndpoints { add: many(), remove: none.clone() });
    assert_eq!(lab.observe().firewall.unwrap().endpoints, many());
    // What is there already may be added.
    lab.apply(&Step::GuardEndpoints { add: many(), remove: none.clone() });
    lab.apply(&Step::GuardEndpoints { add: none.clone(), remove: many() });
    assert_eq!(lab.observe().firewall.unwrap().endpoints, none);
}

fn read_again() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    lab.nft(|nft| {
        let observe = || nft.observe_changed(51820).unwrap();
        assert!(observe().is_some(), "the first time");
        assert_eq!(observe(), None);
        nft.apply(&Step::GuardEndpoints { add: many(), remove: BTreeSet::new() }).unwrap();
        assert_eq!(observe(), None, "our own change");
        lab.node.sh("nft add element inet wg-overlay endpoints4 '{ 198.51.100.1 . 7 }'");
        assert_eq!(observe().unwrap().firewall.unwrap().endpoints.len(), many().len() + 1);
        assert_eq!(observe(), None);
        lab.node.sh("nft add table inet someone");
        nft.apply(&Step::GuardEndpoints { add: BTreeSet::new(), remove: many() }).unwrap();
        assert!(observe().is_some(), "another's change before ours");
        nft.apply(&Step::SetFirewall { ruleset: ruleset(&firewall()), endpoints: many() }).unwrap();
        assert!(observe().is_some(), "the table itself");
    });
}

fn spoiled() {
    let lab = Lab::new();
    for round in 0..20 {
        lab.set_firewall(&firewall());
        let spoil = || lab.node.sh("nft insert rule inet wg-overlay mss_clamp counter accept");
        std::thread::scope(|scope| {
            let spoiler = scope.spawn(spoil);
            lab.set_firewall(&endpoints());
            spoiler.join().unwrap();
        });
        let is_spoiled = lab.node.sh("nft list chain inet wg-overlay mss_clamp").contains("counter");
        let ruleset = lab.observe().firewall.unwrap().ruleset;
        assert!(!is_spoiled || ruleset.is_empty(), "round {round}");
    }
    lab.set_firewall(&endpoints());
    assert_eq!(lab.observe().firewall.unwrap().ruleset, ruleset(&endpoints()));
}

fn counters_survive() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    for _ in 0..3 {
        lab.pod_a.send(&at(FAMILIES[0].pod_a, 0), &at(FAMILIES[0].node, 51820));
    }
    let before = lab.nft(|nft| nft.counters().unwrap());
    assert!(before["pod_to_tunnel"].0 >= 3, "{before:?}");
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        ["handshakes_over_limit", "plaintext_in", "plaintext_out", "pod_to_tunnel", "spoofed_path"]
    );
    lab.set_firewall(&endpoints());
    assert_eq!(lab.nft(|nft| nft.counters().unwrap()), before);
}

fn torn_record() {
    let lab = Lab::new();
    lab.set_firewall(&endpoints());
    let record = lab.state_dir.join("nftables.json");
    for torn in ["", "{", r#"{"ruleset":"x","listing":[]}"#] {
        fs::write(&record, torn).unwrap();
        assert_eq!(lab.observe().firewall.unwrap().ruleset, "");
    }
    fs::remove_file(&record).unwrap();
    assert_eq!(lab.observe().firewall.unwrap().ruleset, "");
}

fn remove() {
    let lab = Lab::new();
    lab.node.sh("nft add table inet someone");
    lab.set_firewall(&endpoints());
    for _ in 0..2 {
        lab.apply(&Step::RemoveFirewall);
        assert_eq!(lab.observe().firewall, None);
        assert_eq!(fs::read_dir(&lab.state_dir).unwrap().count(), 0);
    }
    assert_eq!(lab.node.sh("nft list tables").trim(), "table inet someone");
    assert!(lab.nft(|nft| nft.counters().unwrap()).is_empty());
}

fn missing_program() {
    // PATH belongs to the process, so another one tells.
    let netns = Netns::new();
    let program = std::env::current_exe().unwrap();
    let told = netns.sh(&format!("PATH=/nowhere WGN_ROLE=observe {}", program.display()));
    assert!(told.contains("nft") && told.contains("nftables"), "{told}");
}

fn other_steps() {
    let lab = Lab::new();
    let refused = lab.nft(|nft| nft.apply(&Step::CreateLink(Link::Device)).unwrap_err());
    assert!(matches!(refused, NftError::NotOurs(_)));
}
