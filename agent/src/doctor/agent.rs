//! What the agent says of itself and its peers.

use super::{Facts, Found, fail, need, ok, warn};
use crate::status::{HANDSHAKES, PeerState, State, Status};

pub(super) fn answers(facts: &Facts) -> Found {
    Ok(match &facts.agent {
        Ok(status) => match status.state {
            State::Converged | State::Degraded => {
                ok(format!("{:?}, version {}", status.state, status.version))
            }
            state => warn(format!("{state:?}"), "it should take seconds; its log says what it waits for"),
        },
        Err(error) => fail(
            error,
            "start it: kubectl get pods -n wg-overlay -o wide, then the log of the pod on this node",
        ),
    })
}

pub(super) fn problems(facts: &Facts) -> Found {
    let status = need(&facts.agent)?;
    Ok(match status.problems.as_slice() {
        [] => ok("the agent has none"),
        problems => fail(problems.join("; "), "each names its cure; the agent's log has the details"),
    })
}

pub(super) fn boot_mark(facts: &Facts) -> Found {
    let mark = facts.config.state_dir.join("network.json");
    Ok(if facts.own.exists(&mark) {
        ok(format!("{} is there: pods are attached", mark.display()))
    } else {
        fail(
            format!(
                "no {}: pods wait (CNI code 11) until the agent has made this boot ready",
                mark.display()
            ),
            "wg-overlay status says what the agent waits for; its log too",
        )
    })
}

pub(super) fn addresses(facts: &Facts) -> Found {
    let status = need(&facts.agent)?;
    let used = |p: &crate::status::PodRange| p.capacity.map_or(0, |c| p.used.saturating_mul(100) / c.max(1));
    let text: Vec<_> = status
        .pods
        .iter()
        .filter_map(|p| p.capacity.map(|c| format!("{} of {c} in {}", p.used, p.cidr)))
        .collect();
    let cure = "fewer pods on this node (kubelet's maxPods), or a wider node mask (kube-controller-manager --node-cidr-mask-size)";
    Ok(match status.pods.iter().map(used).max() {
        None => ok("no PodCIDR yet"),
        Some(100..) => fail(format!("no addresses left: {}", text.join(", ")), cure),
        Some(90..) => warn(format!("few addresses left: {}", text.join(", ")), cure),
        Some(_) if text.is_empty() => ok("more than anybody counts"),
        Some(_) => ok(text.join(", ")),
    })
}

pub(super) fn fail_closed(facts: &Facts) -> Found {
    Ok(if facts.config.fail_closed {
        ok("pod packets outside the tunnel are dropped")
    } else {
        warn(
            "FAIL OPEN: pod packets may leave unencrypted",
            "set failClosed: true once the migration is over",
        )
    })
}

pub(super) fn plaintext_drops(facts: &Facts) -> Found {
    let status = need(&facts.agent)?;
    let counted = status.guard.drops.iter().filter(|(reason, n)| **n > 0 && *reason != HANDSHAKES);
    let counted: Vec<_> = counted.map(|(reason, n)| format!("{reason} {n}")).collect();
    Ok(if counted.is_empty() {
        ok("none")
    } else {
        warn(
            format!("packets dropped at the guards: {}", counted.join(", ")),
            "if they grow, something sends pod packets around the tunnel, or (spoofed_…) a pod sends as another: nft list table inet wg-overlay; nft list table bridge wg-overlay",
        )
    })
}

pub(super) fn peers_down(facts: &Facts) -> Found {
    let cure = "open the UDP port towards them and back, on hosts and in the cloud's rules; or annotate wg-overlay.io/endpoint";
    peers(need(&facts.agent)?, PeerState::Down, cure)
}

pub(super) fn peers_unresolved(facts: &Facts) -> Found {
    let cure = "getent hosts NAME on this node; correct the annotation wg-overlay.io/endpoint";
    peers(need(&facts.agent)?, PeerState::Unresolved, cure)
}

pub(super) fn peers_refused(facts: &Facts) -> Found {
    peers(
        need(&facts.agent)?,
        PeerState::Refused,
        "docs/annotations.md lists the reasons; correct those Nodes",
    )
}

/// How many names a line holds.
const NAMES: usize = 5;

fn peers(status: &Status, state: PeerState, cure: &str) -> Found {
    let found: Vec<_> = status.peers.iter().filter(|p| p.state == state).collect();
    if found.is_empty() {
        return Ok(ok(format!("none of {}", status.peers.len())));
    }
    let name = |p: &&crate::status::PeerStatus| match p.reason.as_ref().or(p.note.as_ref()) {
        Some(why) => format!("{} ({why})", p.node),
        None => p.node.clone(),
    };
    let names: Vec<_> = found.iter().take(NAMES).map(name).collect();
    let more = if found.len() > NAMES { format!(" and {} more", found.len() - NAMES) } else { String::new() };
    Ok(fail(format!("{} of {}: {}{more}", found.len(), status.peers.len(), names.join(", ")), cure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::{Outcome, facts::tests::facts},
        status::PodRange,
    };

    #[test]
    fn a_full_podcidr_fails_and_a_nearly_full_one_warns() {
        let (mut facts, _folder) = facts();
        let mut with = |used| {
            let range = PodRange { cidr: "10.0.0.0/24".into(), used, capacity: Some(253) };
            if let Ok(status) = &mut facts.agent {
                status.pods = vec![range];
            }
            addresses(&facts).unwrap()
        };
        assert!(matches!(with(37), Outcome::Ok { .. }));
        assert!(matches!(with(240), Outcome::Warn { .. }));
        assert!(matches!(with(253), Outcome::Fail { .. }));
    }

    #[test]
    fn without_an_agent_only_its_own_check_fails() {
        let (mut facts, _folder) = facts();
        facts.agent = Err("no agent".into());
        assert!(matches!(answers(&facts), Ok(Outcome::Fail { .. })));
        for check in [problems, addresses, peers_down, peers_refused, plaintext_drops] {
            assert!(matches!(check(&facts), Err(Outcome::Skipped { .. })));
        }
    }
}
