//! A node between its pods, another node's pod and the outside.
//!
//! ```text
//!   pod_a 10.244.1.10 ──┐                     ┌── wgo0 (a veth here) ── remote 10.244.2.10, a pod of another node
//!                       ├─ wgobr0 10.244.1.1 node
//!   pod_b 10.244.1.11 ──┘                     └── eth0 192.0.2.1 ───── outside 192.0.2.99, the default gateway
//! ```
//! In IPv6 the prefixes are fd00:244:0:1::/64, fd00:244:0:2::/64 and 2001:db8::/64, with the same host parts.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use wg_overlay_host::{Nft, ObservedRules};
use wg_overlay_mesh::{Firewall, Step, ruleset};

use crate::netns::{Netns, PATIENCE, Receiver, at, ip};

/// The whole picture.
pub struct Lab {
    pub node: Netns,
    pub pod_a: Netns,
    pub pod_b: Netns,
    pub remote: Netns,
    pub outside: Netns,
    pub state_dir: PathBuf,
}

impl Lab {
    pub fn new() -> Self {
        let [node, pod_a, pod_b, remote, outside] = std::array::from_fn(|_| Netns::new());
        node.sh(&format!(
            "cd /proc/sys/net
            for f in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > $f; done
            for f in ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter; do echo 0 > $f; done
            ip link add wgobr0 type bridge forward_delay 0
            ip link add pod_a type veth peer name eth0 netns {}
            ip link add pod_b type veth peer name eth0 netns {}
            ip link add wgo0 type veth peer name tun netns {}
            ip link add eth0 type veth peer name eth0 netns {}
            ip link set pod_a master wgobr0 up
            ip link set pod_b master wgobr0 up
            ip link set wgo0 mtu 1420
            ip addr add 10.244.1.1/24 dev wgobr0
            ip addr add fd00:244:0:1::1/64 dev wgobr0 nodad
            ip addr add 10.244.1.1/32 dev wgo0
            ip addr add fd00:244:0:1::1/128 dev wgo0 nodad
            ip addr add 192.0.2.1/24 dev eth0
            ip addr add 2001:db8::1/64 dev eth0 nodad
            for l in wgobr0 wgo0 eth0; do ip link set $l up; done
            ip route add 10.244.2.0/24 dev wgo0 src 10.244.1.1
            ip route add fd00:244:0:2::/64 dev wgo0 src fd00:244:0:1::1
            ip route add default via 192.0.2.99
            ip route add default via 2001:db8::99",
            pod_a.path(),
            pod_b.path(),
            remote.path(),
            outside.path()
        ));
        for (pod, host) in [(&pod_a, 10), (&pod_b, 11)] {
            pod.sh(&format!(
                "ip addr add 10.244.1.{host}/24 dev eth0
                ip addr add fd00:244:0:1::{host}/64 dev eth0 nodad
                ip link set eth0 up
                ip route add default via 10.244.1.1
                ip route add default via fd00:244:0:1::1"
            ));
        }
        remote.sh("ip addr add 10.244.2.10/32 dev tun
            ip addr add fd00:244:0:2::10/128 dev tun nodad
            ip link set tun up
            ip route add 10.244.1.1 dev tun
            ip route add default via 10.244.1.1
            ip route add fd00:244:0:1::1 dev tun
            ip route add default via fd00:244:0:1::1");
        outside.sh("ip addr add 192.0.2.99/24 dev eth0
            ip addr add 2001:db8::99/64 dev eth0 nodad
            ip link set eth0 up
            ip route add 10.244.0.0/16 via 192.0.2.1
            ip route add fd00:244::/56 via 2001:db8::1");
        let lab = Self { node, pod_a, pod_b, remote, outside, state_dir: state_dir() };
        lab.await_neighbours();
        lab
    }

    /// A link that has just come up may lose the first neighbour solicitations, and with them a test's only packet.
    pub fn await_neighbours(&self) {
        for side in &FAMILIES {
            for (from, address, to, neighbour) in [
                (&self.pod_a, side.pod_a, &self.node, side.gateway),
                (&self.pod_b, side.pod_b, &self.node, side.gateway),
                (&self.pod_a, side.pod_a, &self.pod_b, side.pod_b),
                (&self.remote, side.remote, &self.node, side.gateway),
                (&self.outside, side.outside, &self.node, side.node),
            ] {
                let receiver = to.udp(&at(neighbour, 9));
                let start = Instant::now();
                while receiver.source(Duration::from_millis(100)).is_none() {
                    assert!(start.elapsed() < 4 * PATIENCE, "{address} doesn't reach {neighbour}");
                    from.send(&at(address, 0), &at(neighbour, 9));
                }
            }
        }
    }

    pub fn nft<T: Send>(&self, inside: impl FnOnce(&Nft) -> T + Send) -> T {
        self.node.run(|| inside(&Nft::open(&self.state_dir).unwrap()))
    }

    pub fn observe(&self) -> ObservedRules {
        self.nft(|nft| nft.observe(51820).unwrap())
    }

    pub fn apply(&self, step: &Step) {
        self.nft(|nft| nft.apply(step).unwrap());
    }

    pub fn set_firewall(&self, firewall: &Firewall) {
        self.apply(&Step::SetFirewall { ruleset: ruleset(firewall), endpoints: firewall.endpoints.clone() });
    }

    /// The table without the rules that hold this text: a control that the same packet passes where its rule is missing.
    pub fn set_firewall_without(&self, firewall: &Firewall, text: &str) {
        let full = ruleset(firewall);
        let kept: String = full.lines().filter(|l| !l.contains(text)).map(|l| format!("{l}\n")).collect();
        assert_ne!(kept, full, "no rule has {text}");
        self.apply(&Step::SetFirewall { ruleset: kept, endpoints: firewall.endpoints.clone() });
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.nft(|nft| nft.counters().unwrap()).get(name).map_or(0, |(packets, _)| *packets)
    }

    /// The packet is dropped by the rule that counts it, and doesn't arrive.
    pub fn assert_dropped(&self, counter: &str, receiver: &impl Receiver, send: impl FnOnce()) {
        let before = self.counter(counter);
        send();
        let start = Instant::now();
        while self.counter(counter) == before {
            let arrived = receiver.source(Duration::from_millis(10));
            assert_eq!(arrived, None, "{counter}: the packet arrived");
            assert!(start.elapsed() < PATIENCE, "{counter} doesn't count the packet");
        }
        assert_eq!(receiver.source(Duration::from_millis(1)), None, "{counter}: counted, and arrived");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.state_dir);
    }
}

fn state_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("wgn-{}-{number}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    folder
}

/// The addresses of one family.
pub struct Side {
    pub pod_a: &'static str,
    pub pod_b: &'static str,
    pub gateway: &'static str,
    pub remote: &'static str,
    pub node: &'static str,
    pub outside: &'static str,
    pub any: &'static str,
}

pub const FAMILIES: [Side; 2] = [
    Side {
        pod_a: "10.244.1.10",
        pod_b: "10.244.1.11",
        gateway: "10.244.1.1",
        remote: "10.244.2.10",
        node: "192.0.2.1",
        outside: "192.0.2.99",
        any: "0.0.0.0",
    },
    Side {
        pod_a: "fd00:244:0:1::10",
        pod_b: "fd00:244:0:1::11",
        gateway: "fd00:244:0:1::1",
        remote: "fd00:244:0:2::10",
        node: "2001:db8::1",
        outside: "2001:db8::99",
        any: "::",
    },
];

impl Side {
    pub fn is_v4(&self) -> bool {
        !self.any.contains(':')
    }
}

/// The firewall of the node in the picture.
pub fn firewall() -> Firewall {
    Firewall {
        cluster: ["10.244.0.0/16", "fd00:244::/56"].map(|p| p.parse().unwrap()).into(),
        overlay_ips: [ip("10.244.1.1"), ip("fd00:244:0:1::1")].into(),
        non_masquerade: [].into(),
        masquerade: true,
        fail_closed: true,
        listen_port: 51820,
        // the other family's goes by the route
        node_addresses: [ip("192.0.2.1")].into(),
        endpoints: [].into(),
    }
}
