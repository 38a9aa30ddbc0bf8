//! What must never leave, never come in, and never reach the tunnel's port. Each has its control: without the rule the
//! same packet arrives.

use wg_overlay_mesh::Firewall;

use crate::{
    Test,
    lab::{FAMILIES, Lab, Side, firewall},
    netns::{Receiver, at, ip},
    raw::{RST, RawTcp, SYN_ACK},
};

pub const TESTS: &[Test] = &[
    ("segments_without_a_connection_never_leave", stray_segments),
    ("pod_packets_never_leave_for_an_unknown_pod", unknown_pod),
    ("the_nodes_own_overlay_address_never_leaves", overlay_address),
    ("pod_sources_never_come_from_outside", pod_sources),
    ("new_flows_never_come_in_but_by_dnat", new_flows),
    ("new_flows_come_in_from_non_masquerade_sources", new_flows_from_known_sources),
    ("errors_for_a_pods_flow_come_in", errors_come_in),
    ("pods_never_reach_this_nodes_tunnel_port", own_tunnel_port),
    ("pods_never_reach_a_peers_endpoint", peer_endpoint),
    ("no_service_leads_pods_to_a_tunnel_port", tunnel_port_by_dnat),
];

fn stray_segments() {
    let lab = Lab::new();
    for side in &FAMILIES {
        let outside = RawTcp::new(&lab.outside, side.is_v4());
        let pod = RawTcp::new(&lab.pod_a, side.is_v4());
        for flags in [RST, SYN_ACK] {
            let send = || pod.send(ip(side.pod_a), ip(side.outside), flags);
            lab.set_firewall_without(&firewall(), "plaintext_out drop");
            send();
            assert_eq!(outside.expect(), ip(side.pod_a), "control: no NAT holds what has no entry");
            lab.set_firewall(&firewall());
            lab.assert_dropped("plaintext_out", &outside, send);
        }
        lab.set_firewall(&Firewall { masquerade: false, ..firewall() });
        pod.send(ip(side.pod_a), ip(side.outside), RST);
        assert_eq!(outside.expect(), ip(side.pod_a), "masquerade is off: pods speak as themselves");
    }
}

/// The underlay would carry it: a route of somebody's leads there, and the unreachable routes are gone.
fn unknown_pod() {
    let lab = Lab::new();
    lab.node.sh("ip route add 10.244.3.0/24 via 192.0.2.99; ip route add fd00:244:0:3::/64 via 2001:db8::99");
    lab.outside.sh("ip addr add 10.244.3.5/32 dev lo; ip addr add fd00:244:0:3::5/128 dev lo nodad");
    for (side, unknown) in FAMILIES.iter().zip(["10.244.3.5", "fd00:244:0:3::5"]) {
        let outside = lab.outside.udp(&at(unknown, 7000));
        let send = || lab.pod_a.send(&at(side.pod_a, 0), &at(unknown, 7000));
        // An excepted destination may well be wider than the pod prefixes: 10.0.0.0/8 is usual.
        let wide = ["10.0.0.0/8", "fd00::/8"].map(|p| p.parse().unwrap()).into();
        let non_masquerade = Firewall { non_masquerade: wide, ..firewall() };
        let off = Firewall { masquerade: false, ..non_masquerade.clone() };
        for firewall in [firewall(), Firewall { masquerade: false, ..firewall() }, non_masquerade, off] {
            lab.set_firewall(&Firewall { fail_closed: false, ..firewall.clone() });
            send();
            assert_eq!(outside.expect(), ip(side.pod_a), "control");
            lab.set_firewall(&firewall);
            lab.assert_dropped("plaintext_out", &outside, send);
        }
    }
}

fn overlay_address() {
    let lab = Lab::new();
    for side in &FAMILIES {
        let outside = RawTcp::new(&lab.outside, side.is_v4());
        let node = RawTcp::new(&lab.node, side.is_v4());
        lab.node.sh(&format!("ip route replace {} via {} src {}", side.outside, side.outside, side.gateway));
        let send = || node.send(ip(side.gateway), ip(side.outside), RST);
        lab.set_firewall_without(&firewall(), "plaintext_out drop");
        send();
        assert_eq!(outside.expect(), ip(side.gateway), "control");
        lab.set_firewall(&firewall());
        lab.assert_dropped("plaintext_out", &outside, send);
    }
}

fn pod_sources() {
    let lab = Lab::new();
    lab.outside.sh("ip addr add 10.244.9.9/32 dev lo; ip addr add fd00:244:0:9::9/128 dev lo nodad");
    for (side, forged) in FAMILIES.iter().zip(["10.244.9.9", "fd00:244:0:9::9"]) {
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        let node = lab.node.udp(&at(side.node, 7000));
        for (receiver, to) in [(&pod, side.pod_a), (&node, side.node)] {
            let send = || lab.outside.send(&at(forged, 0), &at(to, 7000));
            lab.set_firewall_without(&firewall(), "plaintext_in drop");
            send();
            assert_eq!(receiver.expect(), ip(forged), "control");
            lab.set_firewall(&firewall());
            lab.assert_dropped("plaintext_in", receiver, send);
        }
        lab.remote.send(&at(side.remote, 0), &at(side.pod_a, 7000));
        assert_eq!(pod.expect(), ip(side.remote), "the tunnel stays open");
    }
}

fn new_flows() {
    let lab = Lab::new();
    let rule = "daddr @cluster";
    lab.node.sh("nft 'table inet service { chain services { type nat hook prerouting priority dstnat;
            udp dport 30000 meta nfproto ipv4 dnat ip to 10.244.1.10:7000
            udp dport 30000 meta nfproto ipv6 dnat ip6 to [fd00:244:0:1::10]:7000
        }; }'");
    for side in &FAMILIES {
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        let node = lab.node.udp(&at(side.gateway, 7000));
        for (receiver, to) in [(&pod, side.pod_a), (&node, side.gateway)] {
            lab.set_firewall_without(&firewall(), rule);
            lab.outside.send(&at(side.outside, 0), &at(to, 7000));
            assert_eq!(receiver.expect(), ip(side.outside), "control");
            lab.set_firewall(&firewall());
            lab.assert_dropped("plaintext_in", receiver, || {
                lab.outside.send(&at(side.outside, 0), &at(to, 7000));
            });
        }
        let client = lab.outside.udp(&at(side.outside, 0));
        client.send_to(b"question", at(side.node, 30000)).unwrap();
        assert_eq!(pod.expect(), ip(side.outside), "what this node leads to the pod arrives");
        pod.send_to(b"answer", client.local_addr().unwrap()).unwrap();
        assert_eq!(client.expect(), ip(side.node), "and is answered");
        client.send_to(b"question", at(side.gateway, 30000)).unwrap();
        assert_eq!(pod.expect(), ip(side.outside), "by the overlay address too");
    }
}

fn new_flows_from_known_sources() {
    let lab = Lab::new();
    let non_masquerade = ["192.0.2.99/32", "2001:db8::99/128"].map(|p| p.parse().unwrap()).into();
    lab.set_firewall(&Firewall { non_masquerade, ..firewall() });
    for side in &FAMILIES {
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        let client = lab.outside.udp(&at(side.outside, 0));
        client.send_to(b"question", at(side.pod_a, 7000)).unwrap();
        assert_eq!(pod.expect(), ip(side.outside));
        pod.send_to(b"answer", client.local_addr().unwrap()).unwrap();
        assert_eq!(client.expect(), ip(side.pod_a));
        let destination = RawTcp::new(&lab.outside, side.is_v4());
        RawTcp::new(&lab.pod_a, side.is_v4()).send(ip(side.pod_a), ip(side.outside), RST);
        assert_eq!(destination.expect(), ip(side.pod_a), "it sees the pod's address in any case");
    }
}

/// A refused port answers with an ICMP error, as a router whose link is too small does: it belongs to the pod's flow.
fn errors_come_in() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    for side in &FAMILIES {
        let pod = lab.pod_a.udp(&at(side.pod_a, 7000));
        pod.connect(at(side.outside, 7999)).unwrap();
        pod.send(b"nobody listens").unwrap();
        pod.set_read_timeout(Some(crate::netns::PATIENCE)).unwrap();
        let answer = pod.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(answer.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

fn own_tunnel_port() {
    let lab = Lab::new();
    for side in &FAMILIES {
        let tunnel = lab.node.udp(&at(side.any, 51820));
        let other = lab.node.udp(&at(side.any, 7000));
        for (sender, from) in [(&lab.pod_a, side.pod_a), (&lab.remote, side.remote)] {
            for to in [side.node, side.gateway] {
                let send = || sender.send(&at(from, 0), &at(to, 51820));
                lab.set_firewall_without(&firewall(), "jump tunnel_port");
                send();
                assert_eq!(tunnel.expect(), ip(from), "control");
                lab.set_firewall(&firewall());
                lab.assert_dropped("pod_to_tunnel", &tunnel, send);
                sender.send(&at(from, 0), &at(to, 7000));
                assert_eq!(other.expect(), ip(from), "any other port is open");
            }
        }
    }
}

fn with_endpoint(side: &Side) -> Firewall {
    Firewall { endpoints: [at(side.outside, 51820).parse().unwrap()].into(), ..firewall() }
}

fn peer_endpoint() {
    let lab = Lab::new();
    for side in &FAMILIES {
        let peer = lab.outside.udp(&at(side.outside, 51820));
        let send = || lab.pod_a.send(&at(side.pod_a, 0), &at(side.outside, 51820));
        lab.set_firewall(&firewall());
        send();
        assert_eq!(peer.expect(), ip(side.node), "control: it is no endpoint yet");
        lab.set_firewall(&with_endpoint(side));
        lab.assert_dropped("pod_to_tunnel", &peer, send);
        lab.node.send(&at(side.node, 51820), &at(side.outside, 51820));
        assert_eq!(peer.expect(), ip(side.node), "the tunnel itself passes");
    }
}

/// A Service or a port that this node forwards: the destination is asked before DNAT and after it.
fn tunnel_port_by_dnat() {
    let lab = Lab::new();
    lab.outside.sh("ip addr add 203.0.113.7/32 dev lo; ip addr add 2001:db8:7::7/128 dev lo nodad");
    lab.node.sh("nft 'table inet service { chain services { type nat hook prerouting priority dstnat;
            ip daddr 10.96.0.1 udp dport 1 dnat ip to 192.0.2.99:51820
            ip daddr 10.96.0.1 udp dport 2 dnat ip to 192.0.2.1:51820
            ip daddr 192.0.2.99 udp dport 51820 dnat ip to 203.0.113.7:51820
            ip6 daddr fd00:96::1 udp dport 1 dnat ip6 to [2001:db8::99]:51820
            ip6 daddr fd00:96::1 udp dport 2 dnat ip6 to [2001:db8::1]:51820
            ip6 daddr 2001:db8::99 udp dport 51820 dnat ip6 to [2001:db8:7::7]:51820
        }; }'");
    for (side, service) in FAMILIES.iter().zip(["10.96.0.1", "fd00:96::1"]) {
        let peer = lab.outside.udp(&at(side.any, 51820));
        let tunnel = lab.node.udp(&at(side.any, 51820));
        let firewall = with_endpoint(side);
        let cases = [
            (service, 1, &peer, r#"comment "after DNAT""#),
            (service, 2, &tunnel, r#"comment "after DNAT""#),
            (side.outside, 51820, &peer, r#"comment "before DNAT""#),
        ];
        for (to, port, receiver, rule) in cases {
            let send = || lab.pod_a.send(&at(side.pod_a, 0), &at(to, port));
            lab.set_firewall_without(&firewall, rule);
            send();
            receiver.expect();
            lab.set_firewall(&firewall);
            lab.assert_dropped("pod_to_tunnel", receiver, send);
        }
    }
}
