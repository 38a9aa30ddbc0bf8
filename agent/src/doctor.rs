//! `wg-overlay doctor`: each prerequisite and each known failure of docs/troubleshooting.md, looked at on this node.
//!
//! [`Facts`] are read first and change nothing; a check is a pure function of them. It stands apart from the agent's own
//! problems because it works where no agent runs, and looks at what is not ours.

mod agent;
mod cni;
mod facts;
mod firewall;
mod ini;
mod links;
mod managers;
mod modules;
mod node;
mod sysctls;

use std::fmt::Write;

use serde::Serialize;

pub use facts::Facts;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Outcome {
    /// All is well.
    Ok {
        /// What was seen.
        found: String,
    },
    /// It may do harm, or will.
    Warn {
        /// What is wrong.
        cause: String,
        /// What a person does.
        cure: String,
    },
    /// It does harm.
    Fail {
        /// What is wrong.
        cause: String,
        /// What a person does.
        cure: String,
    },
    /// It could not be looked at.
    Skipped {
        /// Why.
        reason: String,
    },
}

fn ok(found: impl Into<String>) -> Outcome {
    Outcome::Ok { found: found.into() }
}

fn warn(cause: impl Into<String>, cure: impl Into<String>) -> Outcome {
    Outcome::Warn { cause: cause.into(), cure: cure.into() }
}

fn fail(cause: impl Into<String>, cure: impl Into<String>) -> Outcome {
    Outcome::Fail { cause: cause.into(), cure: cure.into() }
}

fn skipped(reason: impl Into<String>) -> Outcome {
    Outcome::Skipped { reason: reason.into() }
}

/// A fact, or the outcome of a check that lacks it.
fn need<T>(fact: &Result<T, String>) -> Result<&T, Outcome> {
    fact.as_ref().map_err(skipped)
}

/// What a check came to. An `Err` is an outcome too, for the use of `?`.
type Found = Result<Outcome, Outcome>;

/// A check: its id in docs/troubleshooting.md, and how it is made.
struct Check {
    id: &'static str,
    look: fn(&Facts) -> Found,
}

/// Every check, in the order in which things depend on each other.
const CHECKS: &[Check] = &[
    Check { id: "configuration", look: node::configuration },
    Check { id: "wireguard", look: modules::wireguard },
    Check { id: "tun", look: modules::tun },
    Check { id: "links", look: links::links },
    Check { id: "udp-port", look: links::udp_port },
    Check { id: "forwarding", look: sysctls::forwarding },
    Check { id: "br-netfilter", look: modules::br_netfilter },
    Check { id: "rp-filter", look: sysctls::rp_filter },
    Check { id: "conntrack", look: sysctls::conntrack },
    Check { id: "neighbours", look: sysctls::neighbours },
    Check { id: "mtu", look: links::mtu },
    Check { id: "leftovers", look: links::leftovers },
    Check { id: "nft", look: firewall::nft },
    Check { id: "host-firewall", look: firewall::host_firewall },
    Check { id: "legacy-iptables", look: firewall::legacy_iptables },
    Check { id: "network-manager", look: managers::network_manager },
    Check { id: "systemd-networkd", look: managers::systemd_networkd },
    Check { id: "api-server", look: node::api_server },
    Check { id: "pod-cidr", look: node::pod_cidr },
    Check { id: "pod-networks", look: node::pod_networks },
    Check { id: "cidr-overlap", look: node::cidr_overlap },
    Check { id: "foreign-routes", look: node::foreign_routes },
    Check { id: "annotations", look: node::annotations },
    Check { id: "clock", look: node::clock },
    Check { id: "machine-id", look: node::machine_id },
    Check { id: "cni-dirs", look: cni::directories },
    Check { id: "cni-plugins", look: cni::plugins },
    Check { id: "conflist", look: cni::conflist },
    Check { id: "agent", look: agent::answers },
    Check { id: "problems", look: agent::problems },
    Check { id: "boot-mark", look: agent::boot_mark },
    Check { id: "addresses", look: agent::addresses },
    Check { id: "fail-closed", look: agent::fail_closed },
    Check { id: "plaintext-drops", look: agent::plaintext_drops },
    Check { id: "peers-down", look: agent::peers_down },
    Check { id: "peers-unresolved", look: agent::peers_unresolved },
    Check { id: "peers-refused", look: agent::peers_refused },
];

/// A check and what it found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The check's id, as in docs/troubleshooting.md.
    pub check: &'static str,
    /// What it found.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Makes every check.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let look = |check: &Check| {
        let outcome = (check.look)(facts).unwrap_or_else(|outcome| outcome);
        Finding { check: check.id, outcome }
    };
    CHECKS.iter().map(look).collect()
}

/// Whether anything fails.
pub fn is_ill(findings: &[Finding]) -> bool {
    findings.iter().any(|f| matches!(f.outcome, Outcome::Fail { .. }))
}

/// A line a check, a second one with the cure, and the sum.
pub fn render_findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    let mut counts = [0usize; 4];
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    for Finding { check, outcome } in findings {
        let (at, word, text, cure) = match outcome {
            Outcome::Ok { found } => (0, "ok", found, None),
            Outcome::Warn { cause, cure } => (1, "warn", cause, Some(cure)),
            Outcome::Fail { cause, cure } => (2, "FAIL", cause, Some(cure)),
            Outcome::Skipped { reason } => (3, "skipped", reason, None),
        };
        if let Some(count) = counts.get_mut(at) {
            *count += 1;
        }
        // writing to a String can't fail
        let _ = writeln!(out, "{word:7}  {check:width$}  {}", one_line(text));
        if let Some(cure) = cure {
            let _ = writeln!(out, "{:7}  {:width$}  -> {}", "", "", one_line(cure));
        }
    }
    let [fine, warned, failed, skipped] = counts;
    let _ = writeln!(out, "\n{failed} failed, {warned} warned, {fine} ok, {skipped} skipped");
    out
}

/// A finding stays on its line, and drives no terminal.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The ids of the last column of the tables in docs/troubleshooting.md.
    fn documented() -> BTreeSet<String> {
        let doc = include_str!("../../docs/troubleshooting.md");
        let rows = doc.lines().filter(|line| line.starts_with("| "));
        let last = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
        last.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
    }

    #[test]
    fn each_known_failure_has_a_check_and_each_check_is_documented() {
        let checks: BTreeSet<String> = CHECKS.iter().map(|c| c.id.to_owned()).collect();
        assert_eq!(checks.len(), CHECKS.len(), "an id is there twice");
        assert_eq!(documented(), checks);
    }

    #[test]
    fn each_documented_failure_names_its_check() {
        let doc = include_str!("../../docs/troubleshooting.md");
        for row in doc.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what you see")) {
            let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
            assert!(last.starts_with('`') || last == "none", "no check in: {row}");
        }
    }

    #[test]
    fn findings_read_as_the_documentation_shows_them() {
        let findings = [
            Finding { check: "tun", outcome: ok("not needed") },
            Finding { check: "nft", outcome: fail("nft is not in the PATH", "install nftables\nnow") },
            Finding { check: "clock", outcome: skipped("no API") },
        ];
        let golden = "\
ok       tun    not needed
FAIL     nft    nft is not in the PATH
                -> install nftables now
skipped  clock  no API

1 failed, 0 warned, 1 ok, 1 skipped
";
        assert_eq!(render_findings(&findings), golden);
        assert!(is_ill(&findings));
    }
}
