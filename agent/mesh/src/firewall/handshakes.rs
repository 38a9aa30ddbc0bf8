//! What the table keeps of WireGuard's handshakes: who is not answered by this node, and who does not answer it.
//!
//! It stands apart because these are the only rules that look into the tunnel's packets, at the message's type (WireGuard
//! paper, section 5.4). The elements come by packets and go by time: nobody is told of them, and nothing compares them.

use std::time::Duration;

use super::block;

/// The sets of addresses, one a family, whose initiations this node has not answered. An element comes with the first of
/// them and goes when one is answered, or after [`UNANSWERED`].
pub const UNANSWERED_SETS: [&str; 2] = ["initiations_in4", "initiations_in6"];

/// How long an element of [`UNANSWERED_SETS`] stays: what is left of it tells since when its address has had no answer.
pub const UNANSWERED: Duration = Duration::from_secs(300);

/// What was over the limit for an address that does not answer.
pub(super) const COUNTER: &str = "handshakes_over_limit";

/// The types of messages, as the first 32 bits after the UDP header.
const INITIATION: &str = "@th,64,32 0x01000000";
const RESPONSE: &str = "@th,64,32 0x02000000";
const DATA: &str = "@th,64,32 0x04000000";

/// WireGuard tries for 90 s, each 5 s (REKEY_ATTEMPT_TIME, REKEY_TIMEOUT; section 6.1), and anew for as long as there is
/// traffic: so many are free, and the rest come slower.
const LIMIT: &str = "limit rate over 4/minute burst 18 packets";

/// More than a cluster has nodes. Each of our own initiations goes to a peer; what comes in anybody may forge.
const PEERS: u32 = 65_535;
const STRANGERS: u32 = 16_384;

/// Both families, whatever pods have: the underlay may be of either.
const FAMILIES: [(char, &str); 2] = [('4', "ip"), ('6', "ip6")];

/// Of data, the many, one thing is asked.
fn data() -> String {
    format!(r#"{DATA} accept comment "data""#)
}

pub(super) fn sections() -> Vec<String> {
    let seconds = UNANSWERED.as_secs();
    let set = |direction: &str, (digit, ip): (char, &str), size: u32| {
        let kind = format!("type {}_addr", if ip == "ip" { "ipv4" } else { "ipv6" });
        let lines =
            [kind, format!("size {size}"), "flags dynamic,timeout".into(), format!("timeout {seconds}s")];
        block(&format!("set initiations_{direction}{digit}"), lines)
    };
    let sets = FAMILIES.into_iter().flat_map(|f| [set("in", f, STRANGERS), set("out", f, PEERS)]);
    sets.chain([block("chain tunnel_in", inbound()), block("chain tunnel_out", outbound())]).collect()
}

/// Whoever sends a handshake is there.
fn inbound() -> Vec<String> {
    let others = "@th,64,32 != { 0x01000000, 0x02000000 } accept".to_owned();
    let reached = FAMILIES.map(|(digit, ip)| format!("delete @initiations_out{digit} {{ {ip} saddr }}"));
    let noted =
        FAMILIES.map(|(digit, ip)| format!("{INITIATION} add @initiations_in{digit} {{ {ip} saddr }}"));
    [data(), others].into_iter().chain(reached).chain(noted).collect()
}

/// The limit is the address's, whatever ports and however many Nodes claim it.
fn outbound() -> Vec<String> {
    let answered =
        FAMILIES.map(|(digit, ip)| format!("{RESPONSE} delete @initiations_in{digit} {{ {ip} daddr }}"));
    let limited = FAMILIES.map(|(digit, ip)| {
        format!(
            "{INITIATION} update @initiations_out{digit} {{ {ip} daddr {LIMIT} }} counter name {COUNTER} drop"
        )
    });
    std::iter::once(data()).chain(answered).chain(limited).collect()
}
