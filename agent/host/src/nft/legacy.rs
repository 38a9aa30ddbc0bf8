//! The legacy iptables' FORWARD and INPUT: rules that `nft` doesn't see, and that drop all the same.
//!
//! They are looked at only where the kernel says that a legacy filter table is in use.

use std::fs;

use wg_overlay_mesh::{ALIAS, HostChain, HostChainState, next_port};

use super::{
    LINKS, NftError, ObservedRules, host_chain,
    program::{ProgramError, run},
};

pub(super) fn observe(listen_port: u16, found: &mut ObservedRules) {
    for ipv6 in [false, true] {
        for input in [false, true] {
            if !in_use(ipv6) {
                continue;
            }
            match list(ipv6, input) {
                Ok(lines) => {
                    let state = judge(&lines, input, listen_port);
                    found.host_chains.extend(state.map(|s| (HostChain::Legacy { ipv6, input }, s)));
                }
                Err(e) => found.warnings.push(format!(
                    "the legacy iptables are in use here and may drop pods' packets: {}{}",
                    super::with_causes(&e),
                    hint(&e)
                )),
            }
        }
    }
}

/// What a chain of these lines means for our traffic.
pub(super) fn judge(lines: &[String], input: bool, listen_port: u16) -> Option<HostChainState> {
    let exact = are_exactly(lines, &wanted(input, listen_port));
    host_chain::state(drops(lines), lines.iter().any(|line| is_ours(line)), exact)
}

/// In a pod they need CAP_NET_RAW, for the raw socket that they talk over, and their lock /run/xtables.lock.
fn hint(error: &ProgramError) -> &'static str {
    match error {
        ProgramError::Refused { message, .. }
            if message.contains("Permission denied") || message.contains("lock file") =>
        {
            "; in a pod: set the chart's value legacyIptables to true"
        }
        _ => "",
    }
}

/// Makes our rules of this chain those for the port, or none, in one transaction.
pub(super) fn set(ipv6: bool, input: bool, listen_port: Option<u16>) -> Result<(), NftError> {
    let lines = list(ipv6, input)?;
    let wanted = listen_port.map(|port| wanted(input, port)).unwrap_or_default();
    if are_exactly(&lines, &wanted) {
        return Ok(());
    }
    let delete = lines.iter().filter(|line| is_ours(line)).map(|line| line.replacen("-A", "-D", 1));
    let insert = wanted.iter().map(|line| line.replacen("-A", "-I", 1));
    let commands: Vec<String> = delete.chain(insert).collect();
    let script = format!("*filter\n{}\nCOMMIT\n", commands.join("\n"));
    let restore = if ipv6 { "ip6tables-legacy-restore" } else { "iptables-legacy-restore" };
    run(restore, &["--wait", "--noflush"], Some(&script))?;
    Ok(())
}

/// Whether they are in use in this network namespace.
pub(super) fn is_in_use() -> bool {
    in_use(false) || in_use(true)
}

/// The kernel names a table here once somebody has used it in this network namespace.
fn in_use(ipv6: bool) -> bool {
    let names = if ipv6 { "ip6_tables_names" } else { "ip_tables_names" };
    // Of the thread: its network namespace need not be the process's.
    let names = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    names.lines().any(|name| name == "filter")
}

fn list(ipv6: bool, input: bool) -> Result<Vec<String>, ProgramError> {
    let program = if ipv6 { "ip6tables-legacy" } else { "iptables-legacy" };
    Ok(run(program, &["--wait", "-S", name(input)], None)?.lines().map(str::to_owned).collect())
}

fn name(input: bool) -> &'static str {
    if input { "INPUT" } else { "FORWARD" }
}

/// Our rules, word by word as `-S` lists them.
fn wanted(input: bool, listen_port: u16) -> Vec<String> {
    let matches: Vec<String> = if input {
        let ports = [listen_port, next_port(listen_port)].map(|port| format!("-p udp -m udp --dport {port}"));
        ports.into_iter().chain(LINKS.map(|link| format!("-i {link}"))).collect()
    } else {
        LINKS.iter().flat_map(|link| [format!("-i {link}"), format!("-o {link}")]).collect()
    };
    let name = name(input);
    matches.iter().map(|m| format!("-A {name} {m} -m comment --comment {ALIAS} -j ACCEPT")).collect()
}

fn is_ours(line: &str) -> bool {
    line.starts_with("-A ") && line.contains(&format!(" --comment {ALIAS} "))
}

/// Whether our rules are these, in any order, and each once.
fn are_exactly(lines: &[String], wanted: &[String]) -> bool {
    let mut found: Vec<&String> = lines.iter().filter(|line| is_ours(line)).collect();
    let mut wanted: Vec<&String> = wanted.iter().collect();
    found.sort();
    wanted.sort();
    found == wanted
}

/// By policy, or by a last rule that takes everything.
fn drops(lines: &[String]) -> bool {
    let policy = lines.first().is_some_and(|line| line.starts_with("-P ") && line.ends_with(" DROP"));
    policy || lines.last().is_some_and(|line| drops_everything(line))
}

/// `-A CHAIN -j DROP`, whatever its comment says.
fn drops_everything(line: &str) -> bool {
    let unquoted: String = line.split('"').step_by(2).collect();
    let words: Vec<&str> = unquoted.split_whitespace().collect();
    let target = match words.as_slice() {
        ["-A", _, "-m", "comment", "--comment", "-j", target, ..]
        | ["-A", _, "-m", "comment", "--comment", _, "-j", target, ..]
        | ["-A", _, "-j", target, ..] => target,
        _ => return false,
    };
    matches!(*target, "DROP" | "REJECT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_last_rule_without_a_condition_takes_everything() {
        for line in [
            "-A FORWARD -j DROP",
            "-A INPUT -j REJECT --reject-with icmp-host-prohibited",
            "-A FORWARD -m comment --comment last -j DROP",
            r#"-A FORWARD -m comment --comment "the -i last" -j DROP"#,
        ] {
            assert!(drops_everything(line), "{line}");
        }
        for line in
            ["-A FORWARD -i eth0 -j DROP", "-A FORWARD -j ACCEPT", "-A FORWARD -j LOG", "-P FORWARD DROP"]
        {
            assert!(!drops_everything(line), "{line}");
        }
    }
}
