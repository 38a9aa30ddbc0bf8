//! Changes while packets flow, and neighbours that are gone or mean ill.

use std::{
    net::UdpSocket,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use gotatun::{
    noise::{Tunn, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::Packet,
    x25519::{PublicKey, StaticSecret},
};

use crate::lab::{LINK, Lab, Outcome, Test, eventually, expect};

pub const TESTS: &[Test] = &[
    ("the_second_thread_comes_with_load_and_goes", the_second_thread_comes_with_load_and_goes),
    ("a_port_changes_under_traffic", a_port_changes_under_traffic),
    ("a_peer_goes_and_comes_under_traffic", a_peer_goes_and_comes_under_traffic),
    ("a_key_changes_under_traffic", a_key_changes_under_traffic),
    ("deleting_the_link_under_traffic_ends_it", deleting_the_link_under_traffic_ends_it),
    ("a_signal_under_traffic_ends_it", a_signal_under_traffic_ends_it),
    ("an_unreachable_peer_takes_nobody_along", an_unreachable_peer_takes_nobody_along),
    ("a_source_that_is_not_allowed_is_dropped", a_source_that_is_not_allowed_is_dropped),
    ("a_flood_of_handshakes_is_answered_by_cookies", a_flood_of_handshakes_is_answered_by_cookies),
];

/// TCP from node a to node b, both ways at once, until dropped.
struct Traffic(Vec<Child>);

impl Traffic {
    fn start(lab: &Lab) -> Outcome<Self> {
        lab.a.ping("10.9.2.1")?;
        let spawn = |command: &mut Command| {
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            quiet.spawn().map_err(|error| error.to_string())
        };
        let mut traffic = Self(vec![spawn(&mut lab.b.command("exec iperf3 -s"))?]);
        let listens = || lab.b.sh("ss -Hltn sport = :5201 | grep -q .").map(drop);
        eventually("iperf3 listens", listens)?;
        let client = "exec iperf3 -c 10.9.2.1 --bidir -t 600";
        traffic.0.push(spawn(&mut lab.a.command(client))?);
        traffic.flows(lab)?;
        Ok(traffic)
    }

    /// Waits until a few megabytes more have passed, each way.
    fn flows(&self, lab: &Lab) -> Outcome {
        let start = lab.b.transfer(&lab.a.public_key)?;
        eventually("traffic passes", || {
            let now = lab.b.transfer(&lab.a.public_key)?;
            let more = now.0.saturating_sub(start.0).min(now.1.saturating_sub(start.1));
            expect(more > 4_000_000, "4 MB more", (start, now))
        })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn runs(lab: &mut Lab) -> Outcome {
    for node in [&mut lab.a, &mut lab.b] {
        let device = node.device()?;
        expect(device.is_running(), "the device to run", device.log())?;
        expect(!device.log().contains("panicked"), "no panic", device.log())?;
    }
    Ok(())
}

/// Handing a direction over and taking it back loses nothing, and is done: a thread that sleeps is not woken by a ping.
fn the_second_thread_comes_with_load_and_goes() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    for _ in 0..5 {
        let before = lab.a.device()?.sleeps("relief")?;
        let traffic = Traffic::start(&lab)?;
        eventually("the relief is called under load", || {
            let loaded = lab.a.device()?.sleeps("relief")?;
            expect(loaded > before, "more sleeps", (before, loaded))
        })?;
        drop(traffic);
        let pings = |lab: &Lab| lab.a.sh("ping -q -c 50 -i 0.005 10.9.2.1");
        eventually("the relief sleeps", || {
            let before = lab.a.device()?.sleeps("relief")?;
            pings(&lab)?;
            let after = lab.a.device()?.sleeps("relief")?;
            expect(after == before, "no sleep that ended", (before, after))
        })?;
        let pinged = pings(&lab)?;
        expect(pinged.contains(" 0% packet loss"), "every ping to come back", pinged)?;
    }
    runs(&mut lab)
}

fn a_port_changes_under_traffic() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    let traffic = Traffic::start(&lab)?;
    for port in 52000..52010 {
        lab.a.set(&format!("listen-port {port}"))?;
    }
    traffic.flows(&lab)?;
    let endpoint = lab.b.show("endpoints", &lab.a.public_key)?;
    expect(endpoint == "192.0.2.1:52009", "the last port", endpoint)?;
    let sockets = lab.a.sh("ss -Hlun | wc -l")?;
    expect(sockets.trim() == "1", "no socket of the ports before", sockets)?;
    runs(&mut lab)
}

fn a_peer_goes_and_comes_under_traffic() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    let traffic = Traffic::start(&lab)?;
    for _ in 0..5 {
        lab.a.set(&format!("peer {} remove", lab.b.public_key))?;
        let lost = lab.a.sh("ping -q -c 1 -W 1 10.9.2.1");
        expect(lost.is_err(), "no answer by a peer that is gone", lost)?;
        lab.a.know(&lab.b, "192.0.2.2:51820")?;
        lab.a.ping("10.9.2.1")?;
    }
    traffic.flows(&lab)?;
    runs(&mut lab)
}

fn a_key_changes_under_traffic() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    let traffic = Traffic::start(&lab)?;
    for _ in 0..3 {
        lab.a.set("private-key /dev/null")?;
        lab.a.set("private-key /run/key")?;
        lab.a.ping("10.9.2.1")?;
    }
    traffic.flows(&lab)?;
    runs(&mut lab)
}

fn deleting_the_link_under_traffic_ends_it() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    let _traffic = Traffic::start(&lab)?;
    for node in [&mut lab.a, &mut lab.b] {
        node.sh(&format!("ip link del {LINK}"))?;
        let status = node.device()?.ended()?;
        expect(status.success(), "exit code 0", status)?;
    }
    Ok(())
}

fn a_signal_under_traffic_ends_it() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    let _traffic = Traffic::start(&lab)?;
    for node in [&mut lab.a, &mut lab.b] {
        node.device()?.signal("TERM")?;
        let status = node.device()?.ended()?;
        expect(status.success(), "exit code 0", status)?;
    }
    Ok(())
}

/// Its packets and handshakes cannot be sent at all: no such neighbour, and no route.
fn an_unreachable_peer_takes_nobody_along() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    for (n, endpoint) in [(77, "192.0.2.77:51820"), (78, "203.0.113.1:51820"), (79, "[2001:db8:9::1]:51820")]
    {
        let key = lab.a.sh("wg genkey | wg pubkey")?;
        let key = key.trim();
        lab.a.set(&format!(
            "peer {key} endpoint {endpoint} allowed-ips 10.9.{n}.0/24 persistent-keepalive 1"
        ))?;
        lab.a.sh(&format!("ip route add 10.9.{n}.0/24 dev {LINK}"))?;
    }
    let flood = |to: &str| {
        let mut command = lab.a.command(&format!("exec ping -q -f {to}"));
        command.stdout(Stdio::null()).spawn().map_err(|error| error.to_string())
    };
    let floods = [flood("10.9.77.1")?, flood("10.9.78.1")?, flood("10.9.79.1")?];
    let floods = Traffic(floods.into());
    let answered = lab.a.ping("10.9.2.1");
    let traffic = Traffic::start(&lab)?;
    drop((traffic, floods));
    answered?;
    runs(&mut lab)
}

fn a_source_that_is_not_allowed_is_dropped() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.sh("nft 'add table ip t; add chain ip t in { type filter hook prerouting priority -500; }'")?;
    lab.a.sh(&format!("nft 'add rule ip t in iifname {LINK} ip saddr 10.66.0.1 counter'"))?;
    lab.b.sh("ip addr add 10.66.0.1/32 dev lo")?;
    lab.b.ping("10.9.1.1")?;
    let received = || lab.a.transfer(&lab.b.public_key).map(|(received, _)| received);
    let before = received()?;
    let lost = lab.b.sh("ping -q -c 3 -i 0.1 -W 1 -I 10.66.0.1 10.9.1.1");
    expect(lost.is_err(), "no answer", lost)?;
    let after = received()?;
    expect(after >= before + 3 * 84, "three packets to have come to the device", (before, after))?;
    let rules = lab.a.sh("nft list table ip t")?;
    expect(rules.contains("counter packets 0 "), "none of them on the link", rules)
}

/// From b's address, so that b itself has to show its cookie.
fn a_flood_of_handshakes_is_answered_by_cookies() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let key = lab.a.sh(&format!("wg show {LINK} public-key | base64 -d | od -An -v -tx1 | tr -d ' \\n'"))?;
    let mut flood = lab.b.this_program("flood", &format!("192.0.2.1:51820 {}", key.trim()))?;
    let output = flood.output().map_err(|error| error.to_string())?;
    expect(output.status.success(), "a cookie", String::from_utf8(output.stderr))?;
    let mut flood = flood.spawn().map_err(|error| error.to_string())?;
    lab.b.device()?.signal("KILL")?;
    lab.b.device()?.ended()?;
    lab.b.start(1420)?;
    lab.b.know(&lab.a, "192.0.2.1:51820")?;
    lab.b.address(1420)?;
    let answered = lab.b.ping("10.9.1.1");
    let _ = flood.kill();
    let _ = flood.wait();
    answered?;
    runs(&mut lab)
}

/// The role `flood`: handshakes of strangers, until one is answered by a cookie.
pub fn flood() -> ExitCode {
    let flood = || -> Result<(), Box<dyn std::error::Error>> {
        let mut arguments = std::env::args().skip(1);
        let to = arguments.next().ok_or("no address")?;
        let key = arguments.next().ok_or("no key")?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(key.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
        }
        let private = StaticSecret::from([7; 32]);
        let limiter = RateLimiter::new(&PublicKey::from(&private), 100).into();
        let indices = IndexTable::from_os_rng();
        let mut tunnel = Tunn::new(private, PublicKey::from(bytes), None, None, indices, limiter);
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        let mut answer = [0; 200];
        for _ in 0..3_000 {
            let message = tunnel.format_handshake_initiation(true).ok_or("no message")?;
            socket.send(&Packet::from(message))?;
            // A cookie reply is of type 3 and 64 bytes (white paper, 5.4.7).
            if let Ok(64) = socket.recv(&mut answer)
                && answer.first() == Some(&3)
            {
                return Ok(());
            }
        }
        Err("3,000 handshakes and no cookie".into())
    };
    crate::packets::finish(flood())
}
