//! Pods' ports: what a pod sends as another is dropped at its port and counted, what it sends as itself passes. Each has
//! its control: without the table the same packet arrives, or the same claim is believed.

use std::{
    net::SocketAddrV6,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
        sockopt::Ipv6MulticastHops,
    },
};
use tun_rs::{DeviceBuilder, Layer};
use wg_overlay_mesh::Step;

use crate::{
    Test,
    lab::{FAMILIES, Lab, firewall},
    netns::{Netns, PATIENCE, Receiver, at, ip},
};

pub const TESTS: &[Test] = &[
    ("pods_speak_as_themselves_through_their_ports", honest),
    ("a_foreign_source_is_dropped_at_the_port", foreign_source),
    ("a_foreign_mac_is_dropped_at_the_port", foreign_mac),
    ("an_arp_claim_to_a_siblings_address_is_dropped", arp_claim),
    ("a_neighbour_advertisement_for_a_sibling_is_dropped", advertisement),
    ("a_router_advertisement_of_a_pod_is_dropped", router),
    ("dhcp_answers_of_a_pod_are_dropped", dhcp),
    ("a_tagged_frame_is_dropped_at_the_port", tagged),
    ("a_frame_to_bridges_is_dropped_at_the_port", to_bridges),
];

const COUNTERS: [&str; 5] =
    ["spoofed_mac", "spoofed_source", "spoofed_neighbour", "spoofed_router", "spoofed_protocol"];

/// A lab whose pods are attached as by the plugin, with the table in place.
fn guarded() -> Lab {
    let lab = Lab::new();
    lab.attach_pods();
    lab.apply(&Step::SetPortGuard);
    lab
}

/// The packet arrives from there without the table, and with it is dropped by the rule that counts it.
fn assert_guarded(lab: &Lab, counter: &str, receiver: &impl Receiver, from: &str, send: impl Fn()) {
    lab.apply(&Step::RemovePortGuard);
    send();
    assert_eq!(receiver.expect(), ip(from), "control");
    lab.apply(&Step::SetPortGuard);
    lab.assert_dropped(counter, receiver, send);
}

/// Waits until something holds.
fn await_that(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
    }
}

fn honest() {
    let lab = guarded();
    for netns in [&lab.node, &lab.pod_a, &lab.pod_b] {
        netns.sh("ip neigh flush all");
    }
    lab.await_neighbours();
    // as somebody who adds an address by hand: its duplicates are looked for
    lab.pod_a.sh("ip addr del fd00:244:0:1::10/64 dev eth0; ip addr add fd00:244:0:1::10/64 dev eth0");
    let state = || lab.pod_a.sh("ip -6 addr show dev eth0");
    await_that("no duplicate is found", || !state().contains("tentative"));
    assert!(!state().contains("dadfailed"), "{}", state());
    lab.pod_a.sh("ping -n -c1 -W5 fe80::1%eth0");
    for side in &FAMILIES {
        let flows = [
            (&lab.pod_a, side.pod_a, &lab.pod_b, side.pod_b),
            (&lab.pod_b, side.pod_b, &lab.pod_a, side.pod_a),
            (&lab.pod_a, side.pod_a, &lab.outside, side.outside),
            (&lab.remote, side.remote, &lab.pod_a, side.pod_a),
        ];
        for (sender, from, receiver, to) in flows {
            let receiver = receiver.udp(&at(to, 7000));
            sender.send(&at(from, 0), &at(to, 7000));
            assert_eq!(receiver.expect(), ip(from));
        }
    }
    assert_eq!(COUNTERS.map(|name| lab.counter(name)), [0; 5]);
}

fn foreign_source() {
    let lab = guarded();
    lab.pod_a.sh("ip addr add 10.244.1.77/32 dev eth0; ip addr add fd00:244:0:1::77/128 dev eth0 nodad");
    lab.keep_neighbours();
    for (side, forged) in FAMILIES.iter().zip(["10.244.1.77", "fd00:244:0:1::77"]) {
        for (receiver, to) in [(&lab.node, side.gateway), (&lab.pod_b, side.pod_b)] {
            let receiver = receiver.udp(&at(to, 7000));
            assert_guarded(&lab, "spoofed_source", &receiver, forged, || {
                lab.pod_a.send(&at(forged, 0), &at(to, 7000));
            });
        }
    }
}

fn foreign_mac() {
    let lab = guarded();
    lab.pod_a.sh("ip link set eth0 address 02:00:00:00:00:77");
    lab.keep_neighbours();
    for side in &FAMILIES {
        let receiver = lab.pod_b.udp(&at(side.pod_b, 7000));
        assert_guarded(&lab, "spoofed_mac", &receiver, side.pod_a, || {
            lab.pod_a.send(&at(side.pod_a, 0), &at(side.pod_b, 7000));
        });
    }
}

/// The MAC that the node believes an address to have.
fn believed(lab: &Lab, address: &str) -> String {
    lab.node.sh(&format!("ip neigh show {address} dev wgobr0"))
}

fn arp_claim() {
    let lab = guarded();
    let [mac_a, _] = lab.pod_macs();
    lab.pod_a.sh("ip addr add 10.244.1.11/32 dev eth0");
    let claim = || {
        // the request names the source of the packet that waits for its answer
        lab.pod_a.sh("ip neigh flush dev eth0");
        lab.pod_a.send("10.244.1.11:0", "10.244.1.1:9");
    };
    let before = lab.counter("spoofed_neighbour");
    claim();
    await_that("the claim is counted", || lab.counter("spoofed_neighbour") > before);
    assert!(!believed(&lab, "10.244.1.11").contains(&mac_a));
    lab.apply(&Step::RemovePortGuard);
    await_that("control: the claim is believed", || {
        claim();
        believed(&lab, "10.244.1.11").contains(&mac_a)
    });
}

/// Sends an ICMPv6 message to all nodes by `eth0`, as neighbour discovery does (RFC 4861, 3.1).
fn discover(pod: &Netns, message: &[u8]) {
    pod.run(|| {
        let index = if_nametoindex("eth0").unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let icmp = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).unwrap();
        setsockopt(&icmp, Ipv6MulticastHops, &255).unwrap();
        let all_nodes = SockaddrIn6::from(SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index));
        sendto(icmp.as_raw_fd(), message, &all_nodes, MsgFlags::empty()).unwrap();
    });
}

/// Unsolicited, to override what is known (RFC 4861, 4.4).
fn advertisement() {
    let lab = guarded();
    let [mac_a, _] = lab.pod_macs();
    let victim: std::net::Ipv6Addr = "fd00:244:0:1::11".parse().unwrap();
    let mac: Vec<u8> = mac_a.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0], victim.octets().as_slice(), &[2, 1], &mac].concat();
    let before = lab.counter("spoofed_neighbour");
    discover(&lab.pod_a, &message);
    await_that("the claim is counted", || lab.counter("spoofed_neighbour") > before);
    assert!(!believed(&lab, "fd00:244:0:1::11").contains(&mac_a));
    lab.apply(&Step::RemovePortGuard);
    await_that("control: the claim is believed", || {
        discover(&lab.pod_a, &message);
        believed(&lab, "fd00:244:0:1::11").contains(&mac_a)
    });
}

/// CVE-2020-10749.
fn router() {
    const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let lab = guarded();
    let routes = || lab.pod_b.sh("ip -6 route show proto ra");
    let before = lab.counter("spoofed_router");
    discover(&lab.pod_a, &ADVERTISEMENT);
    await_that("it is counted", || lab.counter("spoofed_router") > before);
    assert_eq!(routes(), "");
    lab.apply(&Step::RemovePortGuard);
    await_that("control: the sibling takes the pod for a router", || {
        discover(&lab.pod_a, &ADVERTISEMENT);
        !routes().is_empty()
    });
}

fn dhcp() {
    let lab = guarded();
    for (side, (server, client)) in FAMILIES.iter().zip([(67, 68), (547, 546)]) {
        let receiver = lab.pod_b.udp(&at(side.pod_b, client));
        assert_guarded(&lab, "spoofed_router", &receiver, side.pod_a, || {
            lab.pod_a.send(&at(side.pod_a, server), &at(side.pod_b, client));
        });
    }
}

/// With tag 0, which the kernel takes for no tag. The pod sends it as a bridge of its own would.
fn tagged() {
    const UDP: [u8; 8] = [0x1b, 0x58, 0x1b, 0x58, 0, 8, 0, 0]; // from and to port 7000, without checksum (RFC 768)
    let lab = guarded();
    let tap = lab.pod_a.run(|| DeviceBuilder::new().name("tap0").layer(Layer::L2).build_sync().unwrap());
    lab.pod_a.sh("ip link add inner type bridge; ip link set inner up
        ip link set eth0 master inner; ip link set tap0 master inner up");
    let bytes =
        |mac: &str| -> Vec<u8> { mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect() };
    let [own, _] = lab.pod_macs();
    // version, length 28, TTL 64, UDP; the checksum makes the sum of all words 0xffff (RFC 791, 3.1)
    let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x62, 0x9c, 10, 244, 1, 77, 10, 244, 1, 1];
    let tag = [0x81, 0, 0, 0, 0x08, 0];
    let frame = [&bytes(&lab.bridge_mac()), &bytes(&own), tag.as_slice(), &ip, &UDP].concat();
    let receiver = lab.node.udp("10.244.1.1:7000");
    lab.apply(&Step::RemovePortGuard);
    await_that("control", || {
        tap.send(&frame).unwrap();
        receiver.source(Duration::from_millis(50)) == Some("10.244.1.77:7000".parse().unwrap())
    });
    lab.apply(&Step::SetPortGuard);
    lab.assert_dropped("spoofed_protocol", &receiver, || {
        tap.send(&frame).unwrap();
    });
}

/// Some frames are no bridge's to forward, and reach the node by the port's link, past the chains of its bridge.
fn to_bridges() {
    let lab = guarded();
    lab.pod_a.sh("ip addr add 198.51.100.77/32 dev eth0
        ip neigh replace 10.244.1.1 lladdr 01:80:c2:00:00:0e dev eth0");
    let receiver = lab.node.udp("192.0.2.1:7000");
    let send = || lab.pod_a.send("198.51.100.77:0", "192.0.2.1:7000");
    lab.set_firewall_without(&firewall(), "spoofed_path drop");
    send();
    assert_eq!(receiver.expect(), ip("198.51.100.77"), "control");
    lab.set_firewall(&firewall());
    lab.assert_dropped("spoofed_path", &receiver, send);
}
