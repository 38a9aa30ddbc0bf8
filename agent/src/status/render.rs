//! The status as a person reads it.

use std::fmt::Write;

use super::{HANDSHAKES, PeerState, State, Status};

/// The status as text: a head, a table of the other nodes, and what needs a person's eye.
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    // writing to a String can't fail
    let _ = head(status, &mut out);
    let _ = table(status, &mut out);
    let _ = notes(status, &mut out);
    out
}

fn head(s: &Status, out: &mut String) -> std::fmt::Result {
    writeln!(out, "Node    {}   {}   wg-overlay {}", s.node, summary(s), s.version)?;
    match &s.device {
        Some(d) => {
            let underlay =
                d.underlay.as_ref().map(|(link, mtu)| format!(" ({link} {mtu})")).unwrap_or_default();
            let key = short_key(&d.public_key);
            writeln!(
                out,
                "Device  {} {}  udp {}  MTU {}{underlay}  key {key}",
                d.name, d.implementation, d.listen_port, d.mtu
            )?;
        }
        None => writeln!(out, "Device  none yet")?,
    }
    if let Some(phase) = &s.rotation.phase {
        let waiting = or_none(s.rotation.waiting_for.join(", "));
        writeln!(out, "Key     changes: {phase}, waiting for {waiting}")?;
    }
    let ranges = s.pods.iter().map(|p| match p.capacity {
        Some(capacity) => format!("{} {} of {capacity}", p.cidr, p.used),
        None => format!("{} {}", p.cidr, p.used),
    });
    writeln!(out, "Pods    {}", or_none(ranges.collect::<Vec<_>>().join("   ")))?;
    let of_pods = s.guard.drops.iter().filter(|(reason, _)| *reason != HANDSHAKES);
    let (spoofed, plaintext): (Vec<_>, Vec<_>) =
        of_pods.partition(|(reason, _)| reason.starts_with("spoofed_"));
    let sum = |drops: Vec<(&String, &u64)>| drops.into_iter().map(|(_, n)| n).sum::<u64>();
    let (plaintext, spoofed) = (sum(plaintext), sum(spoofed));
    let guard =
        if s.guard.fail_closed { "fail closed" } else { "FAIL OPEN: pod packets may leave unencrypted" };
    let prefixes = s.guard.prefixes.join(" ");
    let handshakes = s.guard.drops.get(HANDSHAKES).copied().filter(|n| *n > 0);
    let handshakes = handshakes.map(|n| format!("   handshakes over limit {n}")).unwrap_or_default();
    writeln!(
        out,
        "Guard   {guard} {prefixes}    plaintext drops {plaintext}   spoofed drops {spoofed}{handshakes}"
    )?;
    let ready = if s.cni.ready { "ready" } else { "not ready: pods wait" };
    let chained = s.cni.chained.iter().map(|name| format!("   {name} yes"));
    let missing = s.cni.missing.iter().map(|name| format!("   {name} missing"));
    writeln!(out, "CNI     {ready}{}", chained.chain(missing).collect::<String>())
}

fn summary(s: &Status) -> String {
    let count = |state| s.peers.iter().filter(|p| p.state == state).count();
    let mut parts = Vec::new();
    match count(PeerState::Down) {
        0 => {}
        1 => parts.push("1 peer down".to_owned()),
        n => parts.push(format!("{n} peers down")),
    }
    match count(PeerState::Refused) {
        0 => {}
        n => parts.push(format!("{n} refused")),
    }
    match s.problems.len() {
        0 => {}
        1 => parts.push("1 problem".to_owned()),
        n => parts.push(format!("{n} problems")),
    }
    let state = if s.state == State::Converged && !parts.is_empty() { State::Degraded } else { s.state };
    if parts.is_empty() { format!("{state:?}") } else { format!("{state:?}: {}", parts.join(", ")) }
}

fn table(s: &Status, out: &mut String) -> std::fmt::Result {
    if s.peers.is_empty() {
        return writeln!(out, "\nNo other nodes.");
    }
    let mut rows =
        vec![["NODE", "STATE", "ENDPOINT", "ALLOWED IPS", "HANDSHAKE", "RX", "TX"].map(String::from)];
    for p in &s.peers {
        let programmed = p.public_key.is_some();
        let dash = || "-".to_owned();
        let endpoint = match &p.endpoint {
            Some(e) if p.annotated => format!("{e} (ann.)"),
            Some(e) => e.clone(),
            None => dash(),
        };
        let allowed = match p.allowed_ips.as_slice() {
            [] => dash(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} +{}", rest.len()),
        };
        rows.push([
            p.node.clone(),
            format!("{:?}", p.state),
            endpoint,
            allowed,
            p.handshake_age_seconds.map_or_else(dash, duration),
            if programmed { bytes(p.received_bytes) } else { dash() },
            if programmed { bytes(p.sent_bytes) } else { dash() },
        ]);
    }
    writeln!(out)?;
    columns(&rows, out)
}

/// Rows under each other, each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], out: &mut String) -> std::fmt::Result {
    let widths: [usize; N] = std::array::from_fn(|i| {
        rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)
    });
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn notes(s: &Status, out: &mut String) -> std::fmt::Result {
    let peers: Vec<_> = s.peers.iter().filter_map(|p| p.note.as_ref().map(|n| (p, n))).collect();
    if !peers.is_empty() {
        writeln!(out)?;
    }
    let width = peers.iter().map(|(p, _)| p.node.chars().count()).max().unwrap_or(0);
    for (peer, note) in peers {
        match &peer.reason {
            Some(reason) => writeln!(out, "{:width$}  {reason}: {note}", peer.node)?,
            None => writeln!(out, "{:width$}  {note}", peer.node)?,
        }
    }
    if !s.problems.is_empty() || !s.notes.is_empty() || !s.pods_on_old_cidrs.is_empty() {
        writeln!(out)?;
    }
    for problem in &s.problems {
        writeln!(out, "!  {problem}")?;
    }
    for note in &s.notes {
        writeln!(out, "note: {note}")?;
    }
    if !s.pods_on_old_cidrs.is_empty() {
        writeln!(
            out,
            "!  pods with addresses of an earlier PodCIDR, to be recreated: {}",
            s.pods_on_old_cidrs.join(" ")
        )?;
    }
    Ok(())
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none yet".into() } else { text }
}

fn short_key(key: &str) -> String {
    match (key.get(..4), key.get(40..)) {
        (Some(head), Some(tail)) => format!("{head}…{tail}"),
        _ => key.to_owned(),
    }
}

/// Seconds in the largest unit that fits: 41s, 9m, 2h, 3d.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes with three significant digits: 0B, 12KiB, 1.2GiB.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"B");
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    if value < 10.0 && *unit != "B" { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{CniStatus, DeviceStatus, PeerStatus, PodRange};

    #[test]
    fn the_table_reads_as_the_documentation_shows_it() {
        let peer = |node: &str, state, endpoint: Option<&str>, age, rx, tx| PeerStatus {
            node: node.into(),
            state,
            public_key: (state != PeerState::Refused).then(|| "k".into()),
            endpoint: endpoint.map(Into::into),
            annotated: node == "edge-1",
            allowed_ips: if state == PeerState::Refused {
                vec![]
            } else {
                vec!["10.244.2.0/24".into(), "x".into()]
            },
            handshake_age_seconds: age,
            received_bytes: rx,
            sent_bytes: tx,
            note: None,
            reason: None,
        };
        let mut status = Status::new("worker-1", true);
        status.version = "0.1.0".into();
        status.state = State::Converged;
        status.device = Some(DeviceStatus {
            name: "wgo0".into(),
            implementation: "kernel".into(),
            listen_port: 51820,
            mtu: 1420,
            underlay: Some(("eth0".into(), 1500)),
            public_key: "Xk3aAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA9Qc=".into(),
        });
        status.pods = vec![
            PodRange { cidr: "10.244.1.0/24".into(), used: 37, capacity: Some(253) },
            PodRange { cidr: "fd00:244:0:1::/64".into(), used: 37, capacity: None },
        ];
        status.guard.prefixes = vec!["10.244.0.0/16".into(), "fd00:244::/56".into()];
        let drops = [
            ("plaintext_in", 1),
            ("pod_to_tunnel", 2),
            ("spoofed_mac", 3),
            ("spoofed_source", 4),
            (HANDSHAKES, 5),
        ];
        status.guard.drops = drops.map(|(reason, n)| (reason.to_owned(), n)).into();
        status.cni =
            CniStatus { ready: true, chained: vec!["portmap".into()], missing: vec!["bandwidth".into()] };
        status.peers = vec![
            peer("worker-2", PeerState::Up, Some("192.0.2.12:51820"), Some(41), 1_288_490_189, 943_718_400),
            peer("worker-3", PeerState::Idle, Some("192.0.2.13:51820"), Some(7200), 4_194_304, 4_089_446),
            peer("edge-1", PeerState::Down, Some("203.0.113.7:51820"), Some(540), 0, 12_288),
            peer("worker-9", PeerState::Refused, None, None, 0, 0),
        ];
        status.peers[2].note = Some("sent for 9m, nothing back: is UDP 51820 open towards it?".into());
        status.peers[3].note = Some(
            "its key is held by worker-3. Cloned disk? Remove its key file and restart its agent.".into(),
        );
        status.peers[3].reason = Some("DuplicateKey".into());
        let golden = "\
Node    worker-1   Degraded: 1 peer down, 1 refused   wg-overlay 0.1.0
Device  wgo0 kernel  udp 51820  MTU 1420 (eth0 1500)  key Xk3a…9Qc=
Pods    10.244.1.0/24 37 of 253   fd00:244:0:1::/64 37
Guard   fail closed 10.244.0.0/16 fd00:244::/56    plaintext drops 3   spoofed drops 7   handshakes over limit 5
CNI     ready   portmap yes   bandwidth missing

NODE      STATE    ENDPOINT                  ALLOWED IPS       HANDSHAKE  RX      TX
worker-2  Up       192.0.2.12:51820          10.244.2.0/24 +1  41s        1.2GiB  900MiB
worker-3  Idle     192.0.2.13:51820          10.244.2.0/24 +1  2h         4.0MiB  3.9MiB
edge-1    Down     203.0.113.7:51820 (ann.)  10.244.2.0/24 +1  9m         0B      12KiB
worker-9  Refused  -                         -                 -          -       -

edge-1    sent for 9m, nothing back: is UDP 51820 open towards it?
worker-9  DuplicateKey: its key is held by worker-3. Cloned disk? Remove its key file and restart its agent.
";
        assert_eq!(render(&status), golden);
    }

    #[test]
    fn a_note_is_no_problem() {
        let mut status = Status::new("w", true);
        status.state = State::Converged;
        status.notes = vec!["good to know".into()];
        let text = render(&status);
        assert!(
            text.contains("Converged   wg-overlay") && text.ends_with("\n\nnote: good to know\n"),
            "{text}"
        );
    }

    #[test]
    fn fail_open_is_said_loudly() {
        assert!(render(&Status::new("w", false)).contains("FAIL OPEN"));
    }
}
