//! Our links and their addresses: made, adopted, repaired, and told from others'.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
};

use wg_overlay_host::{Host, HostError, Scope, StepError};
use wg_overlay_mesh::{Link, Step, cleanup, plan};

use crate::{
    Test,
    lab::{Node, config, net, run, sh, words},
};

pub const TESTS: &[Test] = &[
    ("what_is_applied_is_observed_and_the_next_plan_is_empty", create),
    ("others_links_addresses_routes_and_tables_stay", foreign),
    ("cleanup_leaves_the_host_as_it_was", clean),
    ("the_bridge_keeps_its_mac_and_pods_keep_their_mtu", bridge),
    ("a_link_of_our_name_that_is_something_else_is_refused", other_kinds),
    ("a_tun_link_without_a_process_is_refused_and_a_dead_socket_is_not", dead),
    ("a_new_mtu_and_a_changed_prefix_converge", changes),
    ("a_device_made_anew_between_two_readings_is_read_whole", anew),
    ("a_failed_guard_ends_the_plan", guard),
    ("a_link_that_cannot_be_made_leaves_out_its_own_steps_only", missing),
    ("a_device_that_is_asked_for_and_does_not_come_is_named", asked),
];

fn create() {
    run(async {
        let mut node = Node::new();
        for n in 0..3 {
            node.add_peer(n);
        }
        assert!(!node.converge(Scope::ALL).await.steps.is_empty());
        node.assert_converged().await;
        let device = node.host.observed().device.clone().unwrap();
        assert!(device.marked && device.up);
        assert_eq!(sh("ip -o link show wgo0 | grep -c 'alias wg-overlay'").trim(), "1");
    });
}

/// Everything of the network that is not ours, in words. What only ages is left out, and what the kernel changes in its
/// own time: addresses of link scope, a new link's carrier, the local routes of new addresses.
fn others() -> String {
    let links = sh(
        "ip -o -d addr show | grep -vE ': (wgo0|wgobr0|wgp)|scope link' | sed -E 's/(valid|preferred)_lft.*//'",
    );
    let routes = sh(
        "for f in -4 -6; do ip $f route show table all | grep -vE 'wgo0|wgobr0|proto 87|fe80:|table local' | sed 's/ linkdown//' || true; done",
    );
    links + &routes + &sh("nft list ruleset | sed -E '/table (inet|bridge) wg-overlay/,/^}/d'")
}

fn foreign() {
    run(async {
        sh("ip route add 198.51.100.0/24 via 192.0.2.2; ip -6 route add 2001:db8:5::/48 via 2001:db8::2;
            ip route add unreachable 10.250.0.0/16; ip route add default via 192.0.2.2;
            ip link add br9 type bridge; ip addr add 10.9.0.1/24 dev br9; ip link set br9 alias other; ip link set br9 up;
            ip route add 203.0.113.0/24 nexthop via 192.0.2.2 nexthop via 192.0.2.3;
            nft add table inet other; nft add chain inet other c");
        let before = others();
        let mut node = Node::new();
        node.add_peer(1);
        node.converge(Scope::ALL).await;
        assert_eq!(others(), before);
        node.assert_converged().await;
        let underlay = &node.host.observed().underlay;
        assert_eq!(underlay.link_to(&"198.51.100.9".parse().unwrap()).unwrap().name, "eth0");
        assert_eq!(
            underlay.link_to(&"203.0.113.9".parse().unwrap()).unwrap().name,
            "eth0",
            "the first of several hops"
        );
        assert_eq!(underlay.link_to(&"2001:db8:5::9".parse().unwrap()).unwrap().name, "eth0");
        assert_eq!(underlay.link_of(&"10.9.0.1".parse().unwrap()).unwrap().name, "br9");
        assert!(underlay.links.values().all(|link| !link.name.starts_with("wgo") && link.name != "lo"));
    });
}

fn clean() {
    run(async {
        let before = others();
        let mut node = Node::new();
        for n in 0..20 {
            node.add_peer(n);
        }
        node.converge(Scope::ALL).await;
        let steps = cleanup(node.host.observe(Scope::ALL).await.unwrap()).steps;
        let failed = node.host.apply_all(&steps).await;
        assert!(failed.is_empty(), "{}", words(&failed));
        assert_eq!(others(), before);
        assert_eq!(sh("ip -o link | grep -cE 'wgo0|wgobr0' || true; ip route show table all | grep -c 'proto 87' || true").trim(), "0\n0");
        assert!(cleanup(node.host.observe(Scope::ALL).await.unwrap()).steps.is_empty());
        assert!(cleanup(node.host.observed()).steps.is_empty());
    });
}

fn bridge() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let mac = || sh("ip -o link show wgobr0 | grep -oE 'link/ether [0-9a-f:]+'");
        let before = mac();
        sh(
            "ip link add wgp0 address 00:00:00:00:00:01 mtu 1400 type veth peer name pod0; ip link set wgp0 master wgobr0 up",
        );
        assert_eq!(mac(), before, "a port with a lower address joined");
        node.desired.bridge.mtu = 1300;
        node.converge(Scope::NETWORK).await;
        assert!(sh("ip -o link show wgp0").contains("mtu 1400"));
        assert!(sh("ip -o link show wgobr0").contains("mtu 1300"));
        assert!(sh("ip -o -d link show wgobr0").contains("nf_call_iptables 1 nf_call_ip6tables 1"));
        node.assert_converged().await;
        sh("ip link set wgobr0 type bridge nf_call_iptables 0");
        let plan = node.converge(Scope::NETWORK).await;
        assert_eq!(plan.steps, [Step::SetBridgeNetfilter]);
    });
}

fn other_kinds() {
    run(async {
        let mut node = Node::new();
        sh("ip link add wgo0 type bridge");
        let error = node.host.observe(Scope::ALL).await.unwrap_err();
        assert!(
            matches!(&error, HostError::ForeignLink { name: "wgo0", kind, .. } if kind == "bridge"),
            "{error}"
        );
        assert!(!error.is_retryable());
        sh("ip link delete wgo0; ip link add wgobr0 type veth peer name wgobr1");
        let error = node.host.observe(Scope::NONE).await.unwrap_err();
        assert!(
            matches!(&error, HostError::ForeignLink { name: "wgobr0", kind, .. } if kind == "veth"),
            "{error}"
        );
        sh("ip link delete wgobr0");
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn dead() {
    run(async {
        let mut node = Node::new();
        sh("mkdir -p /var/run/wireguard; ip tuntap add dev wgo0 mode tun");
        std::os::unix::net::UnixListener::bind("/var/run/wireguard/wgo0.sock").unwrap(); // closed at once
        let error = node.host.observe(Scope::ALL).await.unwrap_err();
        assert!(matches!(&error, HostError::DeadDevice { name: "wgo0", .. }), "{error}");
        assert!(error.to_string().contains("/var/run/wireguard/wgo0.sock"), "{error}");
        sh("ip link delete wgo0");
        assert!(std::path::Path::new("/var/run/wireguard/wgo0.sock").exists());
        node.converge(Scope::ALL).await;
        node.assert_converged().await;
    });
}

fn changes() {
    run(async {
        let mut node = Node::new();
        node.add_peer(1);
        node.converge(Scope::ALL).await;
        node.desired.device.mtu = 1330;
        node.desired.bridge.addresses = [net("10.244.7.1/24"), net("fd00:244:0:7::1/64")].into();
        node.host.set_addresses_in_use([net("10.244.1.1/24")].into());
        let plan = node.converge(Scope::NONE).await;
        assert_eq!(plan.steps.len(), 4, "{plan}");
        node.host.set_addresses_in_use([].into());
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
        // The same address with another prefix length: IPv6 has room for one of them only.
        node.desired.bridge.addresses = [net("10.244.7.1/25"), net("fd00:244:0:7::1/80")].into();
        let steps = plan_of(&node);
        let failed = node.host.apply_all(&steps).await;
        assert!(
            failed
                .iter()
                .all(|(step, error)| *step == Step::AddAddress(Link::Bridge, net("fd00:244:0:7::1/80"))
                    && error.is_retryable())
        );
        assert_eq!(failed.len(), 1);
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn anew() {
    run(async {
        let mut node = Node::new();
        node.add_peer(1);
        node.converge(Scope::ALL).await;
        let mut other = Host::open(config()).unwrap();
        other.observe(Scope::ALL).await.unwrap();
        other.apply(&Step::DeleteLink(Link::Device)).await.unwrap();
        // A user-space device's process ends a moment after its link.
        while std::os::unix::net::UnixStream::connect("/var/run/wireguard/wgo0.sock").is_ok() {
            std::thread::yield_now();
        }
        other.apply(&Step::CreateLink(Link::Device)).await.unwrap();
        let read = node.host.observe(Scope::NETWORK).await.unwrap();
        assert!(read.peers.is_empty() && read.routes.is_empty());
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn plan_of(node: &Node) -> Vec<Step> {
    plan(&node.desired, node.host.observed()).steps
}

fn guard() {
    run(async {
        let mut node = Node::new();
        node.add_peer(1);
        let mut steps = plan(&node.desired, node.host.observe(Scope::ALL).await.unwrap()).steps;
        for step in &mut steps {
            if let Step::SetFirewall { ruleset, .. } = step {
                *ruleset = "this is no ruleset".to_owned();
            }
        }
        let failed = node.host.apply_all(&steps).await;
        assert_eq!(failed.len(), 1, "{}", words(&failed));
        assert!(matches!(failed[0], (Step::SetFirewall { .. }, StepError::Firewall { .. })));
        assert_eq!(
            sh("ip -o link | grep -cE 'wgo0|wgobr0' || true").trim(),
            "0",
            "nothing after the guards was done"
        );
        assert_eq!(
            sh("ip route show table all proto 87 | grep -c unreachable").trim(),
            "3",
            "the other guards were"
        );
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn missing() {
    run(async {
        std::fs::create_dir_all("/run/wg-overlay").unwrap();
        let mut broken = config();
        broken.device_mode = wg_overlay_host::DeviceMode::UserSpace;
        broken.device_program.program = "/nonexistent".into();
        let mut host = Host::open(broken).unwrap();
        let mut node = Node::new();
        for n in 0..50 {
            node.add_peer(n);
        }
        let steps = plan(&node.desired, host.observe(Scope::ALL).await.unwrap()).steps;
        let failed = host.apply_all(&steps).await;
        assert!(
            matches!(&failed[..], [(Step::CreateLink(Link::Device), StepError::Device { .. })]),
            "{}",
            words(&failed)
        );
        assert!(words(&failed).contains("/nonexistent"));
        assert!(host.observed().bridge.as_ref().unwrap().up);
    });
}

/// Nobody listens, somebody hangs up, somebody answers what went wrong.
fn asked() {
    run(async {
        let mut config = config();
        config.device_mode = wg_overlay_host::DeviceMode::UserSpace;
        config.device_socket = Some("/run/device.sock".into());
        let mut host = Host::open(config).unwrap();
        let step = Step::CreateLink(Link::Device);
        let steps = [step, Step::SetMtu(Link::Device, 1400)];
        let absent = host.apply_all(&steps).await;
        assert!(
            matches!(&absent[..], [(_, error)] if error.lacks_device() && error.is_retryable()),
            "{absent:?}"
        );
        assert!(words(&absent).contains("pod on this node isn't up yet"), "{}", words(&absent));

        let listener = UnixListener::bind("/run/device.sock").unwrap();
        let answers = std::thread::spawn(move || {
            for (answer, name) in
                [("", ""), ("error: no /dev/net/tun\n", ""), ("error: what?\n", " name=wgo1")]
            {
                let mut stream = listener.accept().unwrap().0;
                let mut question = String::new();
                BufReader::new(&stream).read_line(&mut question).unwrap();
                assert_eq!(question, format!("start mtu=1400{name}\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert!(host.apply_all(&steps).await[0].1.lacks_device(), "whoever hangs up is not up");
        let refused = host.apply_all(&steps).await;
        assert!(
            !refused[0].1.lacks_device() && words(&refused).contains("no /dev/net/tun"),
            "{}",
            words(&refused)
        );
        let next = [Step::CreateLink(Link::Next), Step::SetMtu(Link::Next, 1400)];
        assert!(words(&host.apply_all(&next).await).contains("what?"));
        answers.join().unwrap();
    });
}
