//! Packets in both families, over both, at every size.

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    process::ExitCode,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::lab::{LINK, Lab, Node, Outcome, Test, eventually, expect};

pub const TESTS: &[Test] = &[
    ("both_families_over_ipv4", both_families_over_ipv4),
    ("both_families_over_ipv6", both_families_over_ipv6),
    ("an_mtu_set_from_outside_is_followed", an_mtu_set_from_outside_is_followed),
    ("a_jumbo_underlay_is_used", a_jumbo_underlay_is_used),
    ("no_checksum_offload", no_checksum_offload),
    ("an_underlay_smaller_than_the_tunnel", an_underlay_smaller_than_the_tunnel),
    ("datagrams_of_every_checksum", datagrams_of_every_checksum),
    ("tcp_with_a_tiny_mss", tcp_with_a_tiny_mss),
    ("a_link_that_is_down_comes_back", a_link_that_is_down_comes_back),
    ("an_endpoint_is_followed", an_endpoint_is_followed),
];

/// A bulk transfer from `from` to node b's tunnel address: it must arrive, how fast is no matter.
fn bulk(lab: &Lab, from: &Node, to: &str, options: &str) -> Outcome {
    let mut server = lab.b.command(&format!("exec iperf3 -s -1 -B {to}"));
    let server = server.stdout(std::process::Stdio::null()).spawn();
    let mut server = server.map_err(|error| error.to_string())?;
    let client = || from.sh(&format!("timeout 60 iperf3 -c {to} -n 20000000 {options}"));
    let outcome = eventually("a bulk transfer", client);
    let _ = server.kill();
    let _ = server.wait();
    outcome.map(drop)
}

fn both_families_over_ipv4() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    both_families(&lab)
}

fn both_families_over_ipv6() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.know(&lab.b, "[2001:db8::2]:51820")?;
    both_families(&lab)?;
    // b roams to where a's packets come from.
    let endpoint = lab.b.show("endpoints", &lab.a.public_key)?;
    expect(endpoint == "[2001:db8::1]:51820", "a's IPv6 endpoint", endpoint)
}

fn both_families(lab: &Lab) -> Outcome {
    for to in ["10.9.2.1", "fd09:2::1"] {
        lab.a.ping(to)?;
        let before = lab.b.transfer(&lab.a.public_key)?;
        bulk(lab, &lab.a, to, "")?;
        bulk(lab, &lab.a, to, "-R")?;
        let after = lab.b.transfer(&lab.a.public_key)?;
        // iperf3 ends with what it wrote, not with what arrived.
        let least = 10_000_000;
        expect(after.0 - before.0 > least, "half of it received", (before, after))?;
        expect(after.1 - before.1 > least, "half of it sent", (before, after))?;
    }
    let handshake = lab.a.show("latest-handshakes", &lab.b.public_key)?;
    expect(handshake != "0", "a handshake", handshake)
}

fn an_mtu_set_from_outside_is_followed() -> Outcome {
    let lab = Lab::joined(9000, 1420)?;
    lab.a.ping("10.9.2.1 -M do -s 1392")?;
    for node in [&lab.a, &lab.b] {
        node.sh(&format!("ip link set {LINK} mtu 1380"))?;
    }
    lab.a.ping("10.9.2.1 -M do -s 1352")?;
    // Padding goes up to the MTU and no further (white paper, 5.4.6): the counters show it.
    let sent = |count: u64| -> Outcome<u64> {
        let before = lab.a.transfer(&lab.b.public_key)?.1;
        lab.a.sh(&format!("ping -q -c {count} -i 0.1 -M do -s 1350 10.9.2.1"))?;
        Ok(lab.a.transfer(&lab.b.public_key)?.1 - before)
    };
    // A handshake may come in between, so the least of a few counts.
    let least = (0..3).map(|_| sent(4)).collect::<Outcome<Vec<_>>>()?.into_iter().min();
    expect(least == Some(4 * (1380 + 32)), "messages padded to the MTU", least)?;
    // Larger than what the engine's own buffers hold (4,096 bytes).
    for node in [&lab.a, &lab.b] {
        node.sh(&format!("ip link set {LINK} mtu 8920"))?;
    }
    lab.a.ping("10.9.2.1 -M do -s 8892")
}

fn a_jumbo_underlay_is_used() -> Outcome {
    let lab = Lab::joined(65535, 65400)?;
    lab.a.ping("10.9.2.1 -M do -s 65372")?;
    for mtu in [65400, 8920, 4200] {
        for node in [&lab.a, &lab.b] {
            node.sh(&format!("ip link set {LINK} mtu {mtu}"))?;
        }
        bulk(&lab, &lab.a, "10.9.2.1", "")?;
        bulk(&lab, &lab.a, "fd09:2::1", "")?;
    }
    Ok(())
}

/// UDP_SEGMENT answers EIO on such a link.
fn no_checksum_offload() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    for node in [&lab.a, &lab.b] {
        node.sh("ethtool -K u0 tx off")?;
    }
    bulk(&lab, &lab.a, "10.9.2.1", "")?;
    lab.a.know(&lab.b, "[2001:db8::2]:51820")?;
    bulk(&lab, &lab.a, "10.9.2.1", "")
}

/// UDP_SEGMENT answers EMSGSIZE; packets are cut on the way, so DF must be off.
fn an_underlay_smaller_than_the_tunnel() -> Outcome {
    let lab = Lab::joined(1300, 1420)?;
    lab.b.sh("nft 'add table ip df; add chain ip df in { type filter hook prerouting priority -500; }'")?;
    lab.b.sh("nft 'add rule ip df in udp dport 51820 ip frag-off & 0x4000 != 0 counter drop'")?;
    for (endpoint, to) in [("192.0.2.2:51820", "10.9.2.1"), ("[2001:db8::2]:51820", "10.9.2.1")] {
        lab.a.know(&lab.b, endpoint)?;
        lab.a.ping(&format!("{to} -M do -s 1392"))?;
        bulk(&lab, &lab.a, to, "")?;
        // A train for sure: the kernel hands it over in one read.
        eventually("trains arrive in single packets", || {
            let before = lab.b.transfer(&lab.a.public_key)?.0;
            let output = lab.a.this_program("burst", &format!("{to}:9"))?.output();
            expect(output.is_ok_and(|o| o.status.success()), "a burst", "failure")?;
            let received = lab.b.transfer(&lab.a.public_key)?.0 - before;
            expect(received > BURST / 2, "half of the burst", received)
        })?;
    }
    Ok(())
}

/// Size of each datagram of the burst, with its headers as large as the tunnel's MTU.
const DATAGRAM: u16 = 1392;

/// Bytes in one burst.
const BURST: u64 = 40 * DATAGRAM as u64;

/// The role `burst`: forty datagrams in one call (UDP_SEGMENT), which stay together up to the
/// TUN link.
pub fn burst() -> ExitCode {
    let send = || -> Result<(), Box<dyn std::error::Error>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(std::env::args().nth(1).unwrap_or_default())?;
        let bytes = vec![0; usize::try_from(BURST)?];
        let segments = [ControlMessage::UdpGsoSegments(&DATAGRAM)];
        let slices = [IoSlice::new(&bytes)];
        sendmsg::<()>(socket.as_raw_fd(), &slices, &segments, MsgFlags::empty(), None)?;
        Ok(())
    };
    finish(send())
}

/// The end of a role.
pub fn finish(outcome: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One of 65,536 payloads has the checksum zero, which stands for none and is dropped over IPv6.
fn datagrams_of_every_checksum() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    for to in ["10.9.2.1", "fd09:2::1"] {
        lab.a.ping(to)?;
        let to = SocketAddr::new(to.parse().map_err(|error| format!("{to}: {error}"))?, 7007).to_string();
        let server = lab.b.this_program("echo", &to)?.spawn();
        let mut server = server.map_err(|error| error.to_string())?;
        let client = lab.a.this_program("values", &to)?.output();
        let _ = server.kill();
        let _ = server.wait();
        let output = client.map_err(|error| error.to_string())?;
        expect(output.status.success(), "every datagram to come back", String::from_utf8(output.stderr))?;
    }
    Ok(())
}

/// The role `echo`: sends back what comes to an address.
pub fn echo() -> ExitCode {
    let serve = || -> Result<(), Box<dyn std::error::Error>> {
        let socket = UdpSocket::bind(std::env::args().nth(1).unwrap_or_default())?;
        let mut buffer = [0; 16];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(buffer.get(..length).unwrap_or_default(), from)?;
        }
    };
    finish(serve())
}

/// The role `values`: sends each number of two bytes to an address, and waits until it is back.
pub fn values() -> ExitCode {
    let send = || -> Result<(), Box<dyn std::error::Error>> {
        let address = std::env::args().nth(1).unwrap_or_default();
        let socket = UdpSocket::bind(if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut buffer = [0; 16];
        // Refused until the server listens.
        while socket.send(&[0; 3]).and_then(|_| socket.recv(&mut buffer)).is_err() {}
        for value in 0..=u16::MAX {
            socket.send(&value.to_be_bytes())?;
            let length =
                socket.recv(&mut buffer).map_err(|error| format!("{value:#06x} is lost: {error}"))?;
            if buffer.get(..length) != Some(value.to_be_bytes().as_slice()) {
                return Err(format!("{value:#06x} came back as {buffer:x?}").into());
            }
        }
        Ok(())
    };
    finish(send())
}

/// Hundreds of segments in 64 KiB, more than one read of the link takes: the kernel cuts them.
fn tcp_with_a_tiny_mss() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    bulk(&lab, &lab.a, "10.9.2.1", "-M 100 -n 2M")?;
    let log = lab.a.device()?.log();
    expect(!log.contains("dropped"), "nothing dropped", log)
}

fn a_link_that_is_down_comes_back() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.b.sh(&format!("ip link set {LINK} down"))?;
    let lost = lab.a.sh("ping -q -c 3 -i 0.1 -W 1 10.9.2.1");
    expect(lost.is_err(), "no answer from a link that is down", lost)?;
    lab.b.sh(&format!("ip link set {LINK} up && ip route add 10.9.1.0/24 dev {LINK}"))?;
    lab.a.ping("10.9.2.1")
}

fn an_endpoint_is_followed() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.a.set("listen-port 51999")?;
    lab.a.ping("10.9.2.1")?;
    let endpoint = lab.b.show("endpoints", &lab.a.public_key)?;
    expect(endpoint == "192.0.2.1:51999", "the new port", endpoint)?;
    lab.b.ping("10.9.1.1")
}
