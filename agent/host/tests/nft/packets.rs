//! Whose address a packet carries, and what TCP is told of the tunnel's size.

use std::{
    io::Write,
    net::{IpAddr, TcpStream},
    thread,
};

use nix::sys::socket::{getsockopt, sockopt::TcpMaxSeg};
use wg_overlay_mesh::Firewall;

use crate::{
    Test,
    lab::{FAMILIES, Lab, firewall},
    netns::{Netns, PATIENCE, Receiver, at, ip},
};

pub const TESTS: &[Test] = &[
    ("pods_leave_with_the_nodes_address_and_hear_the_answer", leave_as_node),
    ("masquerade_never_takes_the_tunnels_port", never_the_tunnels_port),
    ("pods_reach_pods_as_themselves", pod_to_pod),
    ("pods_reach_non_masquerade_destinations_as_themselves", as_themselves),
    ("a_node_enters_the_tunnel_with_its_overlay_address", node_to_pod),
    ("the_tunnel_is_untracked_both_ways", untracked),
    ("mss_is_clamped_in_both_directions", mss),
];

fn leave_as_node() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    for side in &FAMILIES {
        let outside = lab.outside.udp(&at(side.outside, 7000));
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        pod.send_to(b"question", at(side.outside, 7000)).unwrap();
        let from = outside.source(PATIENCE).unwrap();
        assert_eq!(from.ip(), ip(side.node));
        outside.send_to(b"answer", from).unwrap();
        assert_eq!(pod.expect(), ip(side.outside));
        assert_eq!(tcp_source((&lab.pod_a, side.pod_a), (&lab.outside, side.outside)), ip(side.node));
    }
    lab.set_firewall(&Firewall { masquerade: false, ..firewall() });
    for side in &FAMILIES {
        let outside = lab.outside.udp(&at(side.outside, 7001));
        lab.pod_a.send(&at(side.pod_a, 0), &at(side.outside, 7001));
        assert_eq!(outside.expect(), ip(side.pod_a), "masquerade is off");
    }
}

/// A fifth of the unprivileged ports lies at or above the tunnel's, so a hundred random ones would not all lie below.
fn never_the_tunnels_port() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    for side in &FAMILIES {
        let outside = lab.outside.udp(&at(side.outside, 7000));
        for _ in 0..50 {
            lab.pod_a.send(&at(side.pod_a, 0), &at(side.outside, 7000));
            let from = outside.source(PATIENCE).unwrap();
            assert!((1024..51820).contains(&from.port()), "{from}");
        }
    }
}

fn pod_to_pod() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    for side in &FAMILIES {
        for (to, address) in [(&lab.remote, side.remote), (&lab.pod_b, side.pod_b)] {
            let receiver = to.udp(&at(address, 7000));
            lab.pod_a.send(&at(side.pod_a, 0), &at(address, 7000));
            assert_eq!(receiver.expect(), ip(side.pod_a));
        }
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        lab.remote.send(&at(side.remote, 0), &at(side.pod_a, 7000));
        assert_eq!(pod.expect(), ip(side.remote));
        let node = lab.node.udp(&at(side.gateway, 7000));
        lab.node.send(&at(side.gateway, 0), &at(side.gateway, 7000));
        assert_eq!(node.expect(), ip(side.gateway), "the node reaches its own overlay address");
    }
}

fn as_themselves() {
    let lab = Lab::new();
    let non_masquerade = ["192.0.2.99/32", "2001:db8::99/128"].map(|p| p.parse().unwrap()).into();
    lab.set_firewall(&Firewall { non_masquerade, ..firewall() });
    lab.outside.sh("ip addr add 192.0.2.98/24 dev eth0; ip addr add 2001:db8::98/64 dev eth0 nodad");
    for side in &FAMILIES {
        let outside = lab.outside.udp(&at(side.any, 7000));
        lab.pod_a.send(&at(side.pod_a, 0), &at(side.outside, 7000));
        assert_eq!(outside.expect(), ip(side.pod_a));
        let other = side.outside.replace("99", "98");
        lab.pod_a.send(&at(side.pod_a, 0), &at(&other, 7000));
        assert_eq!(outside.expect(), ip(side.node));
    }
}

fn node_to_pod() {
    let lab = Lab::new();
    let control = r#"oifname { "wgo0", "wgo1" } ip"#;
    for side in &FAMILIES {
        let pod = lab.remote.udp(&at(side.remote, 7000));
        lab.set_firewall_without(&firewall(), control);
        lab.node.send(&at(side.node, 0), &at(side.remote, 7000));
        assert_eq!(pod.expect(), ip(side.node), "control: not translated without the rule");
        lab.set_firewall(&firewall());
        let sender = lab.node.udp(&at(side.node, 0));
        sender.send_to(b"question", at(side.remote, 7000)).unwrap();
        let from = pod.source(PATIENCE).unwrap();
        assert_eq!(from.ip(), ip(side.gateway));
        pod.send_to(b"answer", from).unwrap();
        assert_eq!(sender.expect(), ip(side.remote));
        for _ in 0..50 {
            lab.node.send(&at(side.node, 0), &at(side.remote, 7000));
            let from = pod.source(PATIENCE).unwrap();
            assert!(from.port() < 51820, "{from}");
        }
        assert_eq!(tcp_source((&lab.node, side.node), (&lab.remote, side.remote)), ip(side.gateway));
    }
}

/// The source that a TCP server sees.
fn tcp_source((client, from): (&Netns, &str), (server, to): (&Netns, &str)) -> IpAddr {
    let listener = server.listen(&at(to, 8080));
    let _connected = client.tcp(from, &at(to, 8080));
    listener.accept().unwrap().1.ip()
}

fn untracked() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    lab.outside.sh("ip route add 10.96.0.1 via 192.0.2.1; ip route add fd00:96::1 via 2001:db8::1");
    lab.node.sh(r#"nft 'table inet watch {
            chain services { type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.1 udp dport 51820 dnat ip to 10.244.1.10:7000
                ip6 daddr fd00:96::1 udp dport 51820 dnat ip6 to [fd00:244:0:1::10]:7000
            }
            counter in_untracked {}
            counter in_tracked {}
            counter out_untracked {}
            counter out_tracked {}
            chain input { type filter hook input priority 0; udp dport 51820 jump in; }
            chain in { ct state untracked counter name in_untracked return; counter name in_tracked; }
            chain output { type filter hook output priority 0; udp sport 51820 jump out; }
            chain out { ct state untracked counter name out_untracked return; counter name out_tracked; }
        }'"#);
    let count = |name: &str| {
        let text = lab.node.sh(&format!("nft list counter inet watch {name}"));
        text.split_whitespace().skip_while(|w| *w != "packets").nth(1).unwrap().parse::<u32>().unwrap()
    };
    for (side, service) in FAMILIES.iter().zip(["10.96.0.1", "fd00:96::1"]) {
        let tunnel = lab.node.udp(&at(side.any, 51820));
        let peer = lab.outside.udp(&at(side.outside, 51820));
        peer.send_to(b"in", at(side.node, 51820)).unwrap();
        tunnel.expect();
        tunnel.send_to(b"out", at(side.outside, 51820)).unwrap();
        assert_eq!(peer.expect(), ip(side.node));
        // The same port number elsewhere stays tracked: a pod's own flow is masqueraded, a Service's is led on.
        lab.pod_a.send(&at(side.pod_a, 51820), &at(side.outside, 51820));
        let from = peer.source(PATIENCE).unwrap();
        assert_eq!(from.ip(), ip(side.node));
        assert_ne!(from.port(), 51820);
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        peer.send_to(b"in", at(service, 51820)).unwrap();
        assert_eq!(pod.expect(), ip(side.outside));
    }
    assert_eq!((count("in_untracked"), count("in_tracked")), (2, 0));
    assert_eq!((count("out_untracked"), count("out_tracked")), (2, 0));
}

/// Both links of the two pods have an MTU of 1500, so only the node's rules can tell them of the tunnel's 1420.
fn mss() {
    let lab = Lab::new();
    for netns in [&lab.pod_a, &lab.remote] {
        netns.sh("echo 0 > /proc/sys/net/ipv4/tcp_timestamps");
    }
    for side in &FAMILIES {
        let header = if side.is_v4() { 40 } else { 60 };
        let ends = [(&lab.pod_a, &lab.remote, side.remote), (&lab.remote, &lab.pod_a, side.pod_a)];
        for (client, server, address) in ends {
            lab.set_firewall_without(&firewall(), "maxseg");
            assert_eq!(segments(client, server, address), (1500 - header, 1500 - header), "control");
            lab.set_firewall(&firewall());
            assert_eq!(segments(client, server, address), (1420 - header, 1420 - header));
        }
    }
}

/// The largest segment that client and server may send, from each other's SYN.
fn segments(client: &Netns, server: &Netns, address: &str) -> (u32, u32) {
    let listener = server.listen(&at(address, 8080));
    let accepted = thread::spawn(move || listener.accept().unwrap().0);
    let mut stream = client.run(|| TcpStream::connect(at(address, 8080)).unwrap());
    stream.write_all(b"x").unwrap();
    let accepted = accepted.join().unwrap();
    (getsockopt(&stream, TcpMaxSeg).unwrap(), getsockopt(&accepted, TcpMaxSeg).unwrap())
}
