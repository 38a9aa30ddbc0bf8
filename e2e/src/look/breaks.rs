//! What somebody else does to a node's kernel, as commands of a shell: each takes from what is ours, or puts something of
//! its own beside it. On node n1, in a cluster that has an n2.

use anyhow::Result;

use crate::lab::Node;

/// What was broken, and the commands that break it.
pub type Break = (&'static str, &'static str);

/// Links and addresses: events tell of them.
pub const LINKS: [Break; 11] = [
    ("wgo0 deleted", "ip link del wgo0"),
    ("wgo0 set down", "ip link set wgo0 down"),
    ("wgo0 set down and up", "ip link set wgo0 down; ip link set wgo0 up"),
    ("wgo0's addresses removed", "ip addr flush dev wgo0"),
    ("a foreign address on wgo0", "ip addr add 10.244.1.77/32 dev wgo0"),
    ("wgo0's MTU changed", "ip link set wgo0 mtu 1300"),
    ("wgo0's mark removed", "ip link set wgo0 alias ''"),
    ("wgobr0's addresses removed", "ip addr flush dev wgobr0 scope global"),
    ("wgobr0 set down", "ip link set wgobr0 down"),
    ("wgobr0's MTU changed", "ip link set wgobr0 mtu 1300"),
    (
        "wgobr0's netfilter switched off",
        "ip link set wgobr0 type bridge nf_call_iptables 0 nf_call_ip6tables 0",
    ),
];

/// Routes: events tell of them.
pub const ROUTES: [Break; 8] = [
    ("a peer's IPv4 route removed", "ip route del 10.244.2.0/24 proto 87"),
    ("a peer's IPv6 route removed", "ip -6 route del fd00:244:0:2::/64 proto 87"),
    ("all our routes removed", "ip route flush proto 87; ip -6 route flush proto 87"),
    ("a peer's IPv4 route changed", "ip route replace 10.244.2.0/24 via 172.30.0.1 proto 87"),
    (
        "a peer's IPv6 route changed",
        "ip -6 route replace fd00:244:0:2::/64 via fd00:30::1 proto 87 metric 1024",
    ),
    ("an unreachable route removed", "ip route del unreachable 10.244.0.0/16 proto 87"),
    ("an IPv6 unreachable route removed", "ip -6 route del unreachable fd00:244::/56 proto 87"),
    ("a route of ours to nowhere", "ip route add 10.244.9.0/24 dev wgo0 proto 87"),
];

/// Our nftables tables: events tell of them.
pub const RULES: [Break; 10] = [
    ("the table flushed", "nft flush table inet wg-overlay"),
    ("the table deleted", "nft delete table inet wg-overlay"),
    (
        "a rule deleted",
        "nft delete rule inet wg-overlay from_pods handle $(
            nft -a list chain inet wg-overlay from_pods | sed -n 's/.*drop # handle //p' | head -n1)",
    ),
    ("a rule added", "nft insert rule inet wg-overlay plaintext_outbound accept"),
    ("an endpoint removed", "nft flush set inet wg-overlay endpoints4"),
    ("the guarded prefixes removed", "nft flush set inet wg-overlay cluster4"),
    ("the ports' table deleted", "nft delete table bridge wg-overlay"),
    ("a rule of it deleted", "nft flush chain bridge wg-overlay from_pod"),
    ("the pods' addresses removed", "nft flush set bridge wg-overlay pods4"),
    ("the pods' ports removed", "nft flush set bridge wg-overlay pods"),
];

/// All of nftables, what isn't ours among it.
pub const RULESET: Break = ("the whole ruleset flushed", "nft flush ruleset");

/// What WireGuard holds: nothing tells of it, and a resync finds it.
pub const WIREGUARD: [Break; 8] = [
    ("the peer removed", "wg set wgo0 peer $(wg show wgo0 peers | head -n1) remove"),
    (
        "its allowed IPs changed",
        "wg set wgo0 peer $(wg show wgo0 peers | head -n1) allowed-ips 10.244.77.0/24",
    ),
    (
        "its allowed IPs widened",
        "wg set wgo0 peer $(wg show wgo0 peers | head -n1) allowed-ips 10.244.0.0/16,fd00:244::/56",
    ),
    ("its keepalive changed", "wg set wgo0 peer $(wg show wgo0 peers | head -n1) persistent-keepalive 7"),
    (
        "a preshared key set",
        "wg genpsk > /run/psk; wg set wgo0 peer $(wg show wgo0 peers | head -n1) preshared-key /run/psk",
    ),
    (
        "a foreign peer added",
        "wg set wgo0 peer $(wg genkey | wg pubkey) allowed-ips 10.244.2.0/24 endpoint 172.30.0.1:9",
    ),
    ("the device's key changed", "wg genkey > /run/key; wg set wgo0 private-key /run/key"),
    ("the device's port changed", "wg set wgo0 listen-port 51999"),
];

/// A route of somebody else in the place of ours, and what takes it away again. It stays until then, and is named.
pub const TAKEN: [&str; 2] =
    ["ip route replace 10.244.2.0/24 via 172.30.0.1", "ip route del 10.244.2.0/24 via 172.30.0.1"];

/// Puts links, addresses, routes, a rule and a table on a node that look like ours and aren't.
///
/// # Errors
/// The kernel refuses one.
pub fn add_foreign(node: &Node) -> Result<()> {
    let commands = "
        ip link add foreign-br type bridge; ip link set foreign-br up
        ip link add wgp0foreign type veth peer name foreign-peer
        ip addr add 203.0.113.9/32 dev eth0
        ip addr add 203.0.113.10/24 dev foreign-br
        ip route add 198.51.100.0/24 via 172.30.0.1 proto 99
        ip route add 10.244.0.0/20 dev foreign-br proto static
        ip route add unreachable 198.51.102.0/24 proto static
        ip -6 route add 2001:db8:99::/48 via fd00:30::1 proto 99
        ip rule add from 203.0.113.9 lookup 99
        ip route add default via 172.30.0.1 table 99
        nft add table inet foreign; nft add chain inet foreign c '{ type filter hook forward priority 5; }'
        nft add rule inet foreign c counter comment wg-overlay-not";
    node.exec("bash", ["-euc", commands]).map(drop)
}

/// What isn't ours of that, as `ip` and `nft` list it.
///
/// # Errors
/// Some of it is gone.
pub fn foreign(node: &Node) -> Result<String> {
    let commands = "
        ip -br link | grep foreign | cut -c1-40; ip -br addr show dev foreign-br; ip -4 -br addr show dev eth0
        ip route show proto 99; ip route show proto static; ip -6 route show proto 99; ip rule; ip route show table 99
        nft -s list table inet foreign";
    node.exec("bash", ["-euc", commands])
}
