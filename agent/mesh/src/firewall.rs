//! The text of the nftables table: what is translated, what is clamped, what never leaves unencrypted.
//!
//! How the text reaches the kernel is the shell's affair. It stands apart because the packets' rules are written here
//! and nowhere else: a reader of `nft list table inet wg-overlay` finds each of them word by word.

mod family;
mod handshakes;

use ipnet::IpNet;

use self::family::Family;
use crate::{BRIDGE, DEVICE, Firewall, NEXT_DEVICE, TABLE, next_port};

pub use self::handshakes::{UNANSWERED, UNANSWERED_SETS};

/// The table of family `bridge`, as text for `nft -f`, in one transaction that replaces the one before: what a pod sends
/// must come from its own link, MAC and addresses. The sets (`pods`, `pods4`, `pods6`) are empty; the plugin fills them.
///
/// Its named counters (`spoofed_…`) are declared as those of [`ruleset`] are. Nothing in it depends on the cluster.
pub const PORT_RULESET: &str = include_str!("firewall/ports.nft");

/// The table of family `inet` as text for `nft -f`, in one transaction that replaces the one before; the endpoint sets
/// (`endpoints4`, `endpoints6`) are empty, and so are those of handshakes (`initiations_…`), which packets fill.
///
/// The named counters (`pod_to_tunnel`, `spoofed_path`, `handshakes_over_limit`, `plaintext_in`, `plaintext_out`) are each
/// declared on a line of their own, as `counter NAME { packets 0 bytes 0 }`.
pub fn ruleset(firewall: &Firewall) -> String {
    let families: Vec<Family> = [Family::v4(firewall), Family::v6(firewall)].into_iter().flatten().collect();
    let fail_closed = firewall.fail_closed && !families.is_empty();
    let mut sections = vec![counters(fail_closed)];
    sections.extend(sets(&families));
    sections.extend(tunnel_port(firewall));
    sections.extend(handshakes::sections());
    sections.extend(raw(firewall, &families));
    sections.push(mss_clamp());
    sections.extend(source_nat(firewall, &families));
    if fail_closed {
        sections.extend(plaintext(firewall, &families));
    }
    let body: String = sections.join("\n").lines().map(indent).collect();
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}}}\n")
}

fn counters(fail_closed: bool) -> String {
    let plaintext: &[&str] = if fail_closed { &["plaintext_in", "plaintext_out"] } else { &[] };
    let names = [&["pod_to_tunnel", "spoofed_path", handshakes::COUNTER], plaintext].concat();
    names.iter().map(|name| format!("counter {name} {{ packets 0 bytes 0 }}\n")).collect()
}

fn sets(families: &[Family]) -> Vec<String> {
    let of_family = |f: &Family| {
        let direct = (!f.direct.is_empty()).then(|| prefix_set(&f.direct_set(), f.kind, &f.direct));
        std::iter::once(prefix_set(&f.cluster_set(), f.kind, &f.cluster)).chain(direct).collect::<Vec<_>>()
    };
    let endpoints = [("endpoints4", "ipv4_addr"), ("endpoints6", "ipv6_addr")]
        .map(|(name, kind)| block(&format!("set {name}"), [format!("type {kind} . inet_service")]));
    families.iter().flat_map(of_family).chain(endpoints).collect()
}

/// What pods may not send to. Asked before DNAT, since this node may be the router that forwards a peer's public port,
/// and after it, since a Service's endpoint can be a node's port.
fn tunnel_port(firewall: &Firewall) -> Vec<String> {
    let to_this_node = format!("udp dport {} fib daddr type local", tunnel_ports(firewall));
    let targets = ["ip daddr . udp dport @endpoints4", "ip6 daddr . udp dport @endpoints6", &to_this_node];
    vec![
        block("chain tunnel_port", targets.map(|target| format!("{target} counter name pod_to_tunnel drop"))),
        hook("input_from_pods", "filter hook input priority mangle", [to_tunnel_port("after DNAT")]),
        hook("forward_from_pods", "filter hook forward priority mangle", [to_tunnel_port("after DNAT")]),
    ]
}

/// From another node's pods too: the tunnel never carries the tunnel.
fn to_tunnel_port(when: &str) -> String {
    format!(
        r#"iifname {{ "{DEVICE}", "{NEXT_DEVICE}", "{BRIDGE}" }} meta l4proto udp jump tunnel_port comment "{when}""#
    )
}

/// Before connection tracking. If the tunnel's UDP were a tracked flow, a pod's masqueraded flow to the same peer
/// could take its place, and with it the replies.
///
/// Each encrypted packet passes here, and is asked as little as can be: whether it came by one of our links or a pod's,
/// whether a pod's address is its source, and whether it is a handshake.
fn raw(firewall: &Firewall, families: &[Family]) -> [String; 3] {
    let ports = tunnel_ports(firewall);
    let mut prerouting = vec![
        format!("iifname {} goto from_own_links", own_links()),
        // a frame to 01:80:c2:00:00:0e, for one, is handed up by no chain of the bridge's (br_handle_frame, net/bridge)
        r#"iifname "wgp*" counter name spoofed_path drop comment "past the bridge""#.to_owned(),
    ];
    if firewall.fail_closed {
        let drop = |f: &Family| {
            let Family { ip, .. } = f;
            format!(
                r#"{ip} saddr @{} counter name plaintext_in drop comment "pods' packets come by the tunnel""#,
                f.cluster_set()
            )
        };
        prerouting.extend(families.iter().map(drop));
    }
    let tunnel = r#"notrack goto tunnel_in comment "the tunnel, in""#;
    // asking for the route costs more than all the rest: that is for what comes to other addresses
    prerouting.extend(firewall.node_addresses.iter().map(|own| {
        let ip = if own.is_ipv4() { "ip" } else { "ip6" };
        format!("{ip} daddr {own} udp dport {ports} {tunnel}")
    }));
    prerouting.push(format!("udp dport {ports} fib daddr type local {tunnel}"));
    let output = format!(r#"udp sport {ports} notrack goto tunnel_out comment "the tunnel, out""#);
    [
        block("chain from_own_links", [to_tunnel_port("before DNAT")]),
        hook("raw_prerouting", "filter hook prerouting priority raw", prerouting),
        hook("raw_output", "filter hook output priority raw", [output]),
    ]
}

/// `rt mtu` is the smaller of the routes to the destination and back to the source (get_tcpmss,
/// net/netfilter/nft_rt.c), so one expression serves both directions; it never raises a value.
fn mss_clamp() -> String {
    let clamp = |link: &str| {
        format!(r#"{link} {} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"#, devices())
    };
    hook("mss_clamp", "filter hook forward priority mangle", [clamp("iifname"), clamp("oifname")])
}

/// The first chain that gives a flow its source keeps it, so these never come on top of kube-proxy's masquerade.
fn source_nat(firewall: &Firewall, families: &[Family]) -> Vec<String> {
    let ports = ports_beside(firewall.listen_port);
    let mut chains = Vec::new();
    let mut rules = Vec::new();
    for Family { ip, digit, overlay, .. } in families {
        let Some(overlay) = overlay else { continue };
        let to = if overlay.is_ipv6() { format!("[{overlay}]") } else { overlay.to_string() };
        chains.push(block(
            &format!("chain tunnel_source{digit}"),
            [
                format!("meta l4proto udp snat {ip} to {to}:{ports} fully-random"),
                format!("snat {ip} to {overlay} fully-random"),
            ],
        ));
        let devices = devices();
        rules.push(format!("oifname {devices} {ip} saddr != @cluster{digit} goto tunnel_source{digit}"));
    }
    if firewall.masquerade && !families.is_empty() {
        chains.push(block(
            "chain node_source",
            [
                format!("meta l4proto udp masquerade to :{ports} fully-random"),
                "masquerade fully-random".to_owned(),
            ],
        ));
        rules.push(format!("oifname {} accept", own_links()));
        rules.extend(families.iter().map(|f| {
            let Family { ip, digit, .. } = f;
            format!(
                "{ip} saddr @cluster{digit} {ip} daddr != @cluster{digit} {}goto node_source",
                f.not_direct("daddr")
            )
        }));
    }
    if !rules.is_empty() {
        chains.push(hook("source_nat", "nat hook postrouting priority srcnat", rules));
    }
    chains
}

/// The larger range of unprivileged ports beside the tunnel's. The tunnel is untracked, so NAT takes its port for a
/// free one, and the flow that got it would lose its replies to WireGuard.
fn ports_beside(listen_port: u16) -> String {
    const UNPRIVILEGED: u16 = 1024;
    let [first, last] = both_ports(listen_port);
    if listen_port > u16::MAX / 2 {
        format!("{UNPRIVILEGED}-{}", first - 1)
    } else {
        format!("{}-{}", UNPRIVILEGED.max(last + 1), u16::MAX)
    }
}

/// The ports of both devices, the smaller first.
fn both_ports(listen_port: u16) -> [u16; 2] {
    let next = next_port(listen_port);
    [listen_port.min(next), listen_port.max(next)]
}

fn tunnel_ports(firewall: &Firewall) -> String {
    both_ports(firewall.listen_port).map(|port| port.to_string()).join("-")
}

/// Fail closed: after DNAT for what comes in, after source NAT for what goes out. What has no conntrack entry passes
/// by every NAT chain, and is caught here. The address is asked first: encrypted packets have none of a pod's.
fn plaintext(firewall: &Firewall, families: &[Family]) -> [String; 4] {
    let mut to_pods = vec![
        format!("iifname {} accept", own_links()),
        "ct state established,related accept".to_owned(),
        r#"ct status dnat accept comment "this node led it to the pod""#.to_owned(),
    ];
    let mut from_pods = vec![format!("oifname {} accept", own_links())];
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    let drop_out = "counter name plaintext_out drop";
    for f in families {
        let Family { ip, digit, .. } = f;
        inbound.push(format!("{ip} daddr @cluster{digit} goto to_pods"));
        outbound.push(format!("{ip} saddr @cluster{digit} goto from_pods"));
        to_pods.push(format!(
            "{ip} daddr @cluster{digit} {}counter name plaintext_in drop",
            f.not_direct("saddr")
        ));
        // To each other pods speak in the tunnel, even where an excepted destination is wider than the pod prefixes.
        if !firewall.masquerade || !f.direct.is_empty() {
            from_pods.push(format!("{ip} saddr @cluster{digit} {ip} daddr @cluster{digit} {drop_out}"));
        }
        if firewall.masquerade {
            from_pods.push(format!("{ip} saddr @cluster{digit} {}{drop_out}", f.not_direct("daddr")));
        }
    }
    [
        block("chain to_pods", to_pods),
        block("chain from_pods", from_pods),
        hook("plaintext_inbound", "filter hook prerouting priority dstnat + 10", inbound),
        hook("plaintext_outbound", "filter hook postrouting priority srcnat + 10", outbound),
    ]
}

fn own_links() -> String {
    format!(r#"{{ "lo", "{DEVICE}", "{NEXT_DEVICE}", "{BRIDGE}" }}"#)
}

fn devices() -> String {
    format!(r#"{{ "{DEVICE}", "{NEXT_DEVICE}" }}"#)
}

fn prefix_set(name: &str, kind: &str, prefixes: &[IpNet]) -> String {
    let elements: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
    block(
        &format!("set {name}"),
        [
            format!("type {kind}"),
            "flags interval".to_owned(),
            format!("elements = {{ {} }}", elements.join(", ")),
        ],
    )
}

fn hook(name: &str, at: &str, rules: impl IntoIterator<Item = String>) -> String {
    let policy = format!("type {at}; policy accept;");
    block(&format!("chain {name}"), std::iter::once(policy).chain(rules))
}

fn block(head: &str, lines: impl IntoIterator<Item = String>) -> String {
    let body: String = lines.into_iter().map(|l| indent(&l)).collect();
    format!("{head} {{\n{body}}}\n")
}

fn indent(line: &str) -> String {
    if line.is_empty() { "\n".to_owned() } else { format!("\t{line}\n") }
}
