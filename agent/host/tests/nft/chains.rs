//! The host's own firewall: what it drops before our rules are in it passes after, and goes back when they leave.

use wg_overlay_mesh::{HostChain, HostChainState, Step};

use crate::{
    Test,
    lab::{FAMILIES, Lab, Side, firewall},
    netns::{PATIENCE, Receiver, SILENCE, at},
};

pub const TESTS: &[Test] = &[
    ("iptables_nft_forward", || drops(&forward("iptables-nft", "ip6tables-nft", "-P FORWARD DROP"))),
    ("iptables_nft_input", || drops(&input("iptables-nft", "ip6tables-nft", "-P INPUT DROP"))),
    ("iptables_nft_last_rule", || {
        let last = r#"-A FORWARD -m comment --comment "the last" -j REJECT"#;
        drops(&forward("iptables-nft", "ip6tables-nft", last));
    }),
    ("iptables_legacy_forward", || drops(&forward("iptables-legacy", "ip6tables-legacy", "-P FORWARD DROP"))),
    ("iptables_legacy_input", || drops(&input("iptables-legacy", "ip6tables-legacy", "-P INPUT DROP"))),
    ("iptables_legacy_last_rule", || {
        drops(&input("iptables-legacy", "ip6tables-legacy", "-A INPUT -j REJECT"));
    }),
    ("an_inet_chain_that_ends_in_reject", || drops(&firewalld())),
    ("rules_for_another_port_are_replaced", another_port),
    ("rules_of_ours_in_a_chain_that_drops_no_longer_may_go", unneeded),
    ("iptables_reads_and_writes_beside_our_rules", iptables_beside_ours),
    ("chains_that_drop_nothing_of_ours_are_no_affair_of_ours", no_affair),
    ("missing_legacy_programs_are_a_warning", missing_legacy),
    ("without_net_raw_the_charts_value_is_named", without_net_raw),
];

/// A host firewall that drops.
struct Host {
    script: String,
    /// What lists its rules.
    listing: String,
    input: bool,
    chains: usize,
}

fn iptables(v4: &str, v6: &str, input: bool, rule: &str) -> Host {
    Host {
        script: format!("{v4} {rule}; {v6} {rule}"),
        listing: format!("{v4} -S; {v6} -S"),
        input,
        chains: 2,
    }
}

fn forward(v4: &str, v6: &str, rule: &str) -> Host {
    iptables(v4, v6, false, rule)
}

/// Neighbour discovery is the host's own affair, and open in every firewall that knows IPv6.
fn input(v4: &str, v6: &str, rule: &str) -> Host {
    let mut host = iptables(v4, v6, true, rule);
    host.script = format!("{v6} -A INPUT -p icmpv6 -j ACCEPT; {}", host.script);
    host
}

/// As firewalld writes it.
fn firewalld() -> Host {
    let script = "nft 'table inet firewalld { chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            iifname \"lo\" accept
            reject with icmpx admin-prohibited
        }; }'";
    let listing = "nft -s list table inet firewalld".to_owned();
    Host { script: script.to_owned(), listing, input: false, chains: 1 }
}

fn drops(host: &Host) {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    check(&lab, host.input, true, "control: open before");
    lab.node.sh(&host.script);
    let before = lab.node.sh(&host.listing);
    check(&lab, host.input, false, "the host drops");
    let found = lab.observe();
    assert_eq!(found.warnings, Vec::<String>::new());
    let chains: Vec<HostChain> = found.host_chains.keys().cloned().collect();
    assert_eq!(chains.len(), host.chains, "{found:?}");
    assert!(found.host_chains.values().all(|s| *s == HostChainState::Drops), "{found:?}");

    // Twice: what is there is not written again.
    for _ in 0..2 {
        for chain in chains.iter().cloned() {
            lab.apply(&Step::AllowInHostChain { chain, listen_port: 51820 });
        }
    }
    check(&lab, host.input, true, "our rules let it pass");
    let found = lab.observe().host_chains;
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), chains);
    assert!(found.values().all(|s| *s == HostChainState::Allowed), "{found:?}");
    let ours = lab.node.sh(&host.listing).matches("wg-overlay").count();
    assert_eq!(ours, host.chains * if host.input { 5 } else { 6 });

    for _ in 0..2 {
        chains.iter().cloned().for_each(|chain| lab.apply(&Step::LeaveHostChain(chain)));
    }
    assert_eq!(lab.node.sh(&host.listing), before, "exactly ours are gone");
    check(&lab, host.input, false, "the host drops again");
}

/// Pods' packets pass the node (forward), or they and the tunnel's own reach it (input); or none does.
fn check(lab: &Lab, input: bool, open: bool, why: &str) {
    let patience = if open { PATIENCE } else { SILENCE };
    for side in &FAMILIES {
        let Side { pod_a, remote, outside, node, gateway, any, .. } = side;
        let flows = if input {
            [
                (&lab.pod_a, pod_a, &lab.node, node, node, 7000),
                (&lab.remote, remote, &lab.node, gateway, gateway, 7000),
                (&lab.outside, outside, &lab.node, any, node, 51820),
                (&lab.outside, outside, &lab.node, any, node, 51821),
            ]
            .to_vec()
        } else {
            [
                (&lab.pod_a, pod_a, &lab.remote, remote, remote, 7000),
                (&lab.remote, remote, &lab.pod_a, pod_a, pod_a, 7000),
                (&lab.pod_a, pod_a, &lab.outside, outside, outside, 7000),
            ]
            .to_vec()
        };
        for (sender, from, receiver, bound, to, port) in flows {
            let receiver = receiver.udp(&at(bound, port));
            sender.send(&at(from, 0), &at(to, port));
            assert_eq!(receiver.source(patience).is_some(), open, "{why}: {from} to {to} port {port}");
        }
    }
}

fn only_state(lab: &Lab) -> (HostChain, HostChainState) {
    let found = lab.observe().host_chains;
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

fn another_port() {
    for program in ["iptables-nft", "iptables-legacy"] {
        let lab = Lab::new();
        lab.node.sh(&format!("{program} -P INPUT DROP"));
        let (chain, _) = only_state(&lab);
        lab.apply(&Step::AllowInHostChain { chain: chain.clone(), listen_port: 4500 });
        assert_eq!(only_state(&lab), (chain.clone(), HostChainState::Drops), "made for another port");
        lab.apply(&Step::AllowInHostChain { chain: chain.clone(), listen_port: 51820 });
        assert_eq!(only_state(&lab), (chain.clone(), HostChainState::Allowed));
        let rules = lab.node.sh(&format!("{program} -S INPUT"));
        assert!(!rules.contains("4500") && rules.matches("wg-overlay").count() == 5, "{rules}");
        // as an earlier version left them
        lab.node.sh(&format!(
            "{program} -D INPUT -i wgo1 -m comment --comment wg-overlay -j ACCEPT
             {program} -D INPUT -p udp -m udp --dport 51821 -m comment --comment wg-overlay -j ACCEPT"
        ));
        assert_eq!(only_state(&lab), (chain.clone(), HostChainState::Drops), "made for one device");
        lab.apply(&Step::AllowInHostChain { chain: chain.clone(), listen_port: 51820 });
        assert_eq!(only_state(&lab), (chain, HostChainState::Allowed));
    }
}

fn unneeded() {
    for program in ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"] {
        let lab = Lab::new();
        lab.node.sh(&format!("{program} -P FORWARD DROP"));
        let (chain, _) = only_state(&lab);
        lab.apply(&Step::AllowInHostChain { chain: chain.clone(), listen_port: 51820 });
        lab.node.sh(&format!("{program} -P FORWARD ACCEPT"));
        assert_eq!(only_state(&lab), (chain.clone(), HostChainState::Unneeded));
        lab.apply(&Step::LeaveHostChain(chain));
        assert!(lab.observe().host_chains.is_empty());
    }
}

fn iptables_beside_ours() {
    let lab = Lab::new();
    lab.node.sh(
        "iptables-nft -P FORWARD DROP; iptables-nft -P INPUT DROP; iptables-nft -A INPUT -p tcp -j ACCEPT",
    );
    for chain in lab.observe().host_chains.into_keys() {
        lab.apply(&Step::AllowInHostChain { chain, listen_port: 51820 });
    }
    lab.node.sh("iptables-nft -A FORWARD -p tcp --dport 80 -j ACCEPT; iptables-nft -I INPUT -i lo -j ACCEPT");
    let rules = lab.node.sh(
        "iptables-nft -S; iptables-nft-save | iptables-nft-restore; iptables-nft -D INPUT -i lo -j ACCEPT",
    );
    for rule in [
        "-A FORWARD -i wgobr0 -m comment --comment wg-overlay -j ACCEPT",
        "-A FORWARD -o wgo0 -m comment --comment wg-overlay -j ACCEPT",
        "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 51820 -m comment --comment wg-overlay -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 51821 -m comment --comment wg-overlay -j ACCEPT",
    ] {
        assert!(rules.contains(rule), "{rule}\n{rules}");
    }
}

fn no_affair() {
    let lab = Lab::new();
    lab.node.sh("iptables-nft -A FORWARD -i docker0 -j DROP; iptables-legacy -A INPUT -p tcp -j DROP
        nft 'table ip kube-proxy { chain services { ct state new drop; }
            chain filter-forward { type filter hook forward priority -110; jump services; }
            chain output { type filter hook output priority 0; policy drop; }
            chain prerouting { type filter hook prerouting priority 0; policy drop; }; }
        table inet wg-overlay { chain own { type filter hook forward priority 0; policy drop; }; }
        table bridge other { chain forward { type filter hook forward priority 0; policy drop; }; }'");
    let found = lab.observe();
    assert!(found.host_chains.is_empty() && found.warnings.is_empty(), "{found:?}");
}

fn missing_legacy() {
    let lab = Lab::new();
    lab.node.sh("iptables-legacy -P FORWARD DROP; iptables-nft -P FORWARD DROP");
    let folder = lab.state_dir.join("bin");
    lab.node.sh(&format!("mkdir {0}; ln -s $(command -v nft) {0}/nft", folder.display()));
    let program = std::env::current_exe().unwrap();
    let told = lab.node.sh(&format!("PATH={} WGN_ROLE=observe {}", folder.display(), program.display()));
    assert!(told.contains("iptables-legacy is not in the PATH: install the package `iptables`"), "{told}");
    assert!(told.contains("nftables ip filter FORWARD Drops"), "the rest is seen: {told}");
}

/// A pod that may administer the network, and no more: `nft` sees everything, the legacy programs nothing.
fn without_net_raw() {
    let lab = Lab::new();
    lab.node.sh("iptables-legacy -P FORWARD DROP; iptables-nft -P FORWARD DROP");
    let program = std::env::current_exe().unwrap();
    let bounded = "setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin --no-new-privs";
    let told = lab.node.sh(&format!("WGN_ROLE=observe {bounded} {}", program.display()));
    assert!(told.contains("set the chart's value legacyIptables to true"), "{told}");
    assert!(told.contains("nftables ip filter FORWARD Drops"), "the rest is seen: {told}");
}
