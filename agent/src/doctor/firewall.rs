//! nft, and the host's own firewall.

use wg_overlay_mesh::{HostChain, HostChainState, next_port};

use super::{Facts, Found, fail, need, ok, warn};

pub(super) fn nft(facts: &Facts) -> Found {
    Ok(match (&facts.nft, &facts.rules) {
        (Err(error), _) => fail(error, "install the package nftables; the image has it"),
        (Ok(version), Err(error)) => fail(
            format!("{version}: {error}"),
            "run as root with CAP_NET_ADMIN; the kernel needs nf_tables (modprobe nf_tables)",
        ),
        (Ok(version), Ok(rules)) => {
            let guards = ("inet", rules.firewall.as_ref().map(|table| table.ruleset.as_str()));
            let ports = ("bridge", rules.port_guard.as_deref());
            let missing = [guards, ports].into_iter().find(|(_, ruleset)| ruleset.is_none());
            let changed = [guards, ports].into_iter().find(|(_, ruleset)| *ruleset == Some(""));
            match (missing, changed) {
                (Some((family, _)), _) => warn(
                    format!("{version}; there is no table {family} wg-overlay: what it guards is open"),
                    "the agent makes it, if it runs; does something flush the ruleset (nftables.service)?",
                ),
                // another version of nft lists the same table in other words than the agent's; the agent repairs what differs
                (None, Some(_)) if facts.agent.is_ok() => {
                    ok(format!("{version}; our tables are there, and the agent watches them"))
                }
                (None, Some((family, _))) => warn(
                    format!("{version}; table {family} wg-overlay was changed by somebody"),
                    "the agent puts it back within a second, if it runs; who else runs nft here?",
                ),
                (None, None) => ok(format!("{version}; our tables are as they were applied")),
            }
        }
    })
}

pub(super) fn host_firewall(facts: &Facts) -> Found {
    chains(facts, |chain| matches!(chain, HostChain::Nft { .. }))
}

pub(super) fn legacy_iptables(facts: &Facts) -> Found {
    let rules = need(&facts.rules)?;
    if !rules.warnings.is_empty() {
        return Ok(warn(
            rules.warnings.join("; "),
            "in the chart, legacyIptables: true; on a host, install the package iptables; then look again",
        ));
    }
    chains(facts, |chain| matches!(chain, HostChain::Legacy { .. }))
}

fn chains(facts: &Facts, kind: fn(&HostChain) -> bool) -> Found {
    let rules = need(&facts.rules)?;
    let with = |wanted| {
        let of_kind = rules.host_chains.iter().filter(|(chain, state)| kind(chain) && **state == wanted);
        of_kind.map(|(chain, _)| chain.to_string()).collect::<Vec<_>>().join(", ")
    };
    let port = facts.config.listen_port;
    let (drops, allowed) = (with(HostChainState::Drops), with(HostChainState::Allowed));
    Ok(if !drops.is_empty() {
        fail(
            format!("drops our traffic, and our accept rule is not there: {drops}"),
            format!(
                "the agent puts it there, if it runs; by hand, accept links wgo0, wgo1 and wgobr0, and UDP {port} and {}",
                next_port(port)
            ),
        )
    } else if allowed.is_empty() {
        ok("no chain drops our traffic")
    } else {
        ok(format!("would drop our traffic, and our accept rule is there: {allowed}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Outcome, facts::tests::facts};

    #[test]
    fn a_chain_that_drops_fails_until_our_rule_is_there() {
        let (mut facts, _folder) = facts();
        let legacy = HostChain::Legacy { ipv6: false, input: false };
        let firewalld = HostChain::Nft {
            family: "inet".into(),
            table: "firewalld".into(),
            chain: "filter_FORWARD".into(),
            input: false,
        };
        let mut set = |chain: &HostChain, state| {
            if let Ok(rules) = &mut facts.rules {
                rules.host_chains.insert(chain.clone(), state);
            }
            (host_firewall(&facts).unwrap(), legacy_iptables(&facts).unwrap())
        };
        assert!(matches!(set(&firewalld, HostChainState::Drops), (Outcome::Fail { .. }, Outcome::Ok { .. })));
        assert!(matches!(set(&firewalld, HostChainState::Allowed), (Outcome::Ok { .. }, Outcome::Ok { .. })));
        assert!(matches!(set(&legacy, HostChainState::Drops), (Outcome::Ok { .. }, Outcome::Fail { .. })));
    }
}
