//! The readers of `nft`'s, iptables' and nfnetlink's answers, without the kernel.

use super::{
    answer::{counter, each_element, generation_id, unanswered_since},
    elements::endpoints,
    host_chain, legacy,
    program::objects,
    table::apart,
};
use crate::{events::nftables_change, netlink::split};

const PORT: u16 = wg_overlay_mesh::DEFAULT_LISTEN_PORT;

/// Reads an answer of `nft -j list`, as one of our table and as one of the host's chains.
pub fn nft(answer: &str) {
    let Ok(objects) = objects(answer) else { return };
    let rules = host_chain::rules_among(objects.clone());
    for (chain, drops) in objects.iter().filter_map(|o| host_chain::base_chain(o.get("chain")?)) {
        host_chain::judge(&chain, drops, &rules, PORT);
    }
    let (listing, elements) = apart(objects, "endpoints");
    drop(endpoints(&elements));
    assert!(apart(listing, "endpoints").1.is_empty(), "what is compared holds no endpoints");
}

/// Reads an answer of `iptables-legacy -S`.
pub fn iptables(answer: &str) {
    let lines: Vec<String> = answer.lines().map(str::to_owned).collect();
    for input in [false, true] {
        legacy::judge(&lines, input, PORT);
    }
}

/// Reads a datagram of nfnetlink, as an answer and as events.
pub fn nfnetlink(datagram: &[u8]) {
    for message in split(datagram) {
        counter(message.payload());
        generation_id(message.payload());
        each_element(message.payload(), |key, element| {
            unanswered_since(key, element);
        });
        nftables_change(message);
    }
}
