//! Others' changes are heard and repaired; what changes nothing for us is not heard.
//!
//! The kernel delivers an event while it makes the change. So a later change of another kind, heard first, proves that
//! there was none before it: no waiting for silence.

use wg_overlay_host::{Change, Events, Scope};

use crate::{
    Test,
    lab::{Node, PATIENCE, expect, run, sh},
};

pub const TESTS: &[Test] = &[
    ("what_others_change_of_ours_is_heard_and_repaired", repaired),
    ("what_others_change_of_the_underlay_is_heard", underlay),
    ("pods_kube_proxy_and_our_own_changes_are_not_heard", quiet),
    ("tables_are_told_apart", tables),
    ("a_flood_that_overflows_the_socket_is_everything", flood),
];

fn repaired() {
    run(async {
        let mut node = Node::new();
        let mut events = node.host.events().unwrap();
        for n in 0..10 {
            node.add_peer(n);
        }
        node.converge(Scope::ALL).await;
        for harm in [
            "ip link delete wgo0",
            "ip link set wgo0 down",
            "ip link set wgo0 down; ip link set wgo0 up",
            "ip addr del 10.244.1.1/32 dev wgo0",
            "ip addr flush dev wgobr0",
            "ip link set wgobr0 down",
            "ip link delete wgobr0",
            "ip link set wgo0 mtu 1300",
            "ip link set wgobr0 alias other",
            "ip link set wgobr0 type bridge nf_call_iptables 0",
            "ip link set lo down; ip link set lo up", // takes IPv6's unreachable routes along
            "ip route del 10.128.0.64/26",
            "ip -6 route del fd00:244:1:1::/64",
            "ip route del unreachable 10.244.0.0/16",
            "ip route replace 10.128.0.64/26 dev wgo0 proto 87 mtu 900",
        ] {
            quieten(&mut events).await;
            sh(harm);
            expect(&mut events, Change::Network).await;
            // The process of a user-space device ends after its link: the link may be seen without a process.
            while node.host.observe(Scope::NETWORK).await.is_err() {
                expect(&mut events, Change::Network).await;
            }
            let plan = node.converge(Scope::NONE).await;
            assert!(!plan.steps.is_empty(), "{harm}");
            node.assert_converged().await;
        }
        for family in ["inet", "bridge"] {
            sh(&format!("nft delete table {family} wg-overlay"));
            expect(&mut events, Change::Firewall).await;
            assert!(!node.converge(Scope::FIREWALL).await.steps.is_empty(), "{family}");
            node.assert_converged().await;
            quieten(&mut events).await;
        }
    });
}

/// Hears everything up to this moment.
async fn quieten(events: &mut Events) {
    sh("nft add table inet marker; nft delete table inet marker");
    expect(events, Change::HostChains).await;
}

/// What is heard first after this change, and everything with it.
async fn first_after(events: &mut Events, script: &str) -> Change {
    sh(script);
    sh("nft add table inet marker; nft delete table inet marker");
    let first = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
    if first != Change::HostChains {
        expect(events, Change::HostChains).await;
    }
    first
}

fn underlay() {
    run(async {
        let node = Node::new();
        let mut events = node.host.events().unwrap();
        for change in [
            "ip link set eth0 mtu 1400",
            "ip addr add 192.0.2.50/24 dev eth0",
            "ip addr del 192.0.2.50/24 dev eth0",
            "ip route add default via 192.0.2.2",
            "ip route replace default via 192.0.2.3",
            "ip -6 route add default via 2001:db8::2",
            "ip link set eth0 down",
            "ip link set eth0 up",
            "ip link add new0 type veth peer name new1; ip link set new0 up",
            "ip link delete new0",
        ] {
            assert_eq!(first_after(&mut events, change).await, Change::Network, "{change}");
        }
    });
}

fn quiet() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let mut events = node.host.events().unwrap();
        for n in 0..100 {
            node.add_peer(n);
        }
        let plan = node.converge(Scope::NONE).await;
        assert!(plan.steps.len() >= 300, "{plan}");
        assert_eq!(first_after(&mut events, "true").await, Change::HostChains, "our own changes");
        sh("nft add table ip kube-proxy");
        // The first port gives the bridge its carrier, and with it an address of link scope.
        sh(
            "ip link add wgpfirst type veth peer name pfirst; ip link set pfirst up; ip link set wgpfirst master wgobr0 up",
        );
        quieten(&mut events).await;
        for change in [
            "for i in 1 2 3; do ip link add wgp$i type veth peer name p$i; ip link set wgp$i master wgobr0 alias x up;
               ip link set p$i netns $$ name q$i 2>/dev/null || true; done; for i in 1 2 3; do ip link delete wgp$i; done",
            "ip link add wgpz type veth peer name wgpy; ip addr add 10.244.1.77/32 dev wgpz; ip link set wgpz up;
             ip route add 10.77.0.0/24 dev wgpz; ip link delete wgpz",
            "ip addr replace 192.0.2.1/24 dev eth0 valid_lft 1000 preferred_lft 1000",
            "ip addr add 127.0.0.9/8 dev lo; ip link set lo mtu 60000",
            "ip route add 10.66.0.0/24 dev eth0 table 100",
            "nft add chain ip kube-proxy c; nft flush table ip kube-proxy",
            "nft add element bridge wg-overlay pods '{ \"wgp1\" . 02:00:00:00:00:01 }'", // as ADD does
            "ip link set wgobr0 type bridge nf_call_iptables 1; ip link set wgo0 mtu 1400",
        ] {
            assert_eq!(first_after(&mut events, change).await, Change::HostChains, "{change}");
        }
        let flushed = first_after(&mut events, "nft flush set bridge wg-overlay pods").await;
        assert_eq!(flushed, Change::Firewall, "no ADD removes elements");
    });
}

fn tables() {
    run(async {
        let node = Node::new();
        let mut events = node.host.events().unwrap();
        for (change, wanted) in [
            ("nft add table inet wg-overlay", Change::Firewall),
            ("nft add chain inet wg-overlay c; nft add rule inet wg-overlay c accept", Change::Firewall),
            (
                "nft add set inet wg-overlay s '{ type ipv4_addr; }'; nft add element inet wg-overlay s '{ 10.0.0.1 }'",
                Change::Firewall,
            ),
            ("nft flush ruleset", Change::Firewall),
            ("nft add table ip wg-overlay2", Change::HostChains),
        ] {
            assert_eq!(first_after(&mut events, change).await, wanted, "{change}");
        }
        // Heard together are heard in this order: ours, others', and only then what comes later.
        sh("nft add table ip kube-proxy; nft add chain ip kube-proxy c; nft add table inet wg-overlay");
        let next = async |events: &mut Events| tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        assert_eq!(next(&mut events).await, Change::Firewall);
        sh("ip addr add 192.0.2.60/24 dev eth0");
        assert_eq!(next(&mut events).await, Change::Network, "kube-proxy's table is not heard");
    });
}

fn flood() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let mut events = node.host.events().unwrap();
        sh(
            "for i in $(seq 0 65535); do echo route add 11.$((i / 256)).$((i % 256)).0/24 dev eth0; done > /run/batch; ip -batch /run/batch",
        );
        let mut heard = Vec::new();
        for _ in 0..3 {
            heard.push(tokio::time::timeout(PATIENCE, events.next()).await.unwrap());
        }
        assert_eq!(
            heard,
            [Change::Network, Change::Firewall, Change::HostChains],
            "events were lost, so all is read again"
        );
        quieten(&mut events).await;
        sh("ip link set wgo0 down");
        expect(&mut events, Change::Network).await;
        node.converge(Scope::NETWORK).await;
        node.assert_converged().await;
    });
}
