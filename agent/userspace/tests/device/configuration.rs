//! Configuration as `wg` and wireguard-control do it, and what it must not disturb.

use std::{
    io::Read,
    net::UdpSocket,
    process::{Child, ExitCode, Stdio},
    thread,
};

use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, KeyPair, PeerConfigBuilder};

use crate::lab::{LINK, Lab, Outcome, Test, eventually, expect, sh};

pub const TESTS: &[Test] = &[
    ("an_update_keeps_the_session", an_update_keeps_the_session),
    ("an_allowed_ip_has_one_holder", an_allowed_ip_has_one_holder),
    ("allowed_ips_are_replaced_and_peers_removed", allowed_ips_are_replaced_and_peers_removed),
    ("peers_may_come_before_the_key", peers_may_come_before_the_key),
    ("a_key_can_be_taken_away", a_key_can_be_taken_away),
    ("a_taken_port_changes_nothing", a_taken_port_changes_nothing),
    ("a_mark_is_on_the_packets", a_mark_is_on_the_packets),
    ("keepalives_are_sent", keepalives_are_sent),
    ("wireguard_control_reads_and_writes_it", wireguard_control_reads_and_writes_it),
];

fn new_key() -> Outcome<String> {
    Ok(sh("wg genkey | wg pubkey")?.trim().to_owned())
}

fn an_update_keeps_the_session() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let b = &lab.b.public_key;
    let handshake = lab.a.show("latest-handshakes", b)?;
    let counted = lab.a.transfer(b)?;
    for change in [
        format!("peer {b} persistent-keepalive 25"),
        format!("peer {b} endpoint 192.0.2.2:51820"),
        format!("peer {b} allowed-ips 10.9.2.0/24,fd09:2::/64,10.10.0.0/16"),
        format!("peer {} allowed-ips 10.11.0.0/16", new_key()?),
        "fwmark 7".to_owned(),
        "listen-port 51821".to_owned(),
    ] {
        lab.a.set(&change)?;
        lab.a.sh("ping -q -c 1 -W 1 10.9.2.1")?;
    }
    let after = lab.a.transfer(b)?;
    expect(after > counted, "counters that went on", (counted, after))?;
    // One session: the time is told anew with each answer, so up to a second off.
    let now = lab.a.show("latest-handshakes", b)?;
    let seconds = |text: &str| text.parse::<i64>().unwrap_or(0);
    let apart = seconds(&now) - seconds(&handshake);
    expect(apart.abs() <= 1, "the same handshake", apart)
}

fn an_allowed_ip_has_one_holder() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let (b, other) = (&lab.b.public_key, &new_key()?);
    lab.a.set(&format!("peer {other} allowed-ips 10.9.2.0/24"))?;
    let (of_b, of_other) = (lab.a.show("allowed-ips", b)?, lab.a.show("allowed-ips", other)?);
    expect(of_b == "fd09:2::/64", "the other family only", of_b)?;
    expect(of_other == "10.9.2.0/24", "the moved prefix", of_other)?;
    let lost = lab.a.sh("ping -q -c 2 -i 0.1 -W 1 10.9.2.1");
    expect(lost.is_err(), "no answer by the peer that lost it", lost)?;
    lab.a.ping("fd09:2::1")?;
    // An update of the loser does not bring it back.
    lab.a.set(&format!("peer {b} persistent-keepalive 25"))?;
    let of_other = lab.a.show("allowed-ips", other)?;
    expect(of_other == "10.9.2.0/24", "the moved prefix still", of_other)?;
    lab.a.set(&format!("peer {b} allowed-ips 10.9.2.0/24,fd09:2::/64"))?;
    let of_other = lab.a.show("allowed-ips", other)?;
    expect(of_other == "(none)", "nothing left", of_other)?;
    lab.a.ping("10.9.2.1")
}

fn allowed_ips_are_replaced_and_peers_removed() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    let b = &lab.b.public_key;
    let many: Vec<_> = (0..300).map(|n| format!("10.20.{}.{}/32", n / 250, n % 250)).collect();
    lab.a.set(&format!("peer {b} allowed-ips {}", many.join(",")))?;
    let held = lab.a.show("allowed-ips", b)?;
    expect(held.split(' ').count() == many.len(), "all of them", held)?;
    lab.a.set(&format!("peer {b} remove"))?;
    let peers = lab.a.sh(&format!("wg show {LINK} peers"))?;
    expect(peers.is_empty(), "no peer", peers)?;
    lab.a.know(&lab.b, "192.0.2.2:51820")?;
    lab.a.ping("10.9.2.1")?;
    // setconf replaces all peers.
    let key = new_key()?;
    lab.a.sh(&format!("printf '[Peer]\\nPublicKey={key}\\n' > /run/conf && wg setconf {LINK} /run/conf"))?;
    let peers = lab.a.sh(&format!("wg show {LINK} peers"))?;
    expect(peers.trim() == key, "the new peer alone", peers)
}

fn peers_may_come_before_the_key() -> Outcome {
    let mut lab = Lab::new(1500)?;
    lab.a.start(1420)?;
    lab.b.start(1420)?;
    let b = lab.b.public_key.clone();
    lab.a.set(&format!("peer {b} endpoint 192.0.2.2:51820 allowed-ips 10.9.2.0/24"))?;
    let key = lab.a.sh(&format!("wg show {LINK} private-key"))?;
    expect(key.trim() == "(none)", "no key", key)?;
    lab.a.set("private-key /run/key listen-port 51820")?;
    lab.b.know(&lab.a, "192.0.2.1:51820")?;
    lab.a.address(1420)?;
    lab.b.address(1420)?;
    lab.a.ping("10.9.2.1")
}

fn a_key_can_be_taken_away() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.a.set("private-key /dev/null")?;
    let key = lab.a.sh(&format!("wg show {LINK} private-key"))?;
    expect(key.trim() == "(none)", "no key", key)?;
    let lost = lab.a.sh("ping -q -c 2 -i 0.1 -W 1 10.9.2.1");
    expect(lost.is_err(), "no tunnel without a key", lost)?;
    lab.a.set("private-key /run/key")?;
    lab.a.ping("10.9.2.1")
}

fn a_taken_port_changes_nothing() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    for family in ["0.0.0.0:7777", "[::]:7777"] {
        let mut holder = lab.a.this_program("hold", family)?;
        let holder = holder.stdout(Stdio::piped()).spawn();
        let mut holder = Holder(holder.map_err(|error| error.to_string())?);
        holder.ready()?;
        let refused = lab.a.set("listen-port 7777");
        let in_use = matches!(&refused, Err(error) if error.contains("Address already in use"));
        expect(in_use, "EADDRINUSE", refused)?;
        let port = lab.a.sh(&format!("wg show {LINK} listen-port"))?;
        expect(port.trim() == "51820", "the old port", port)?;
        lab.a.sh("ping -q -c 1 -W 1 10.9.2.1")?;
    }
    lab.a.set("listen-port 7777")?;
    lab.a.ping("10.9.2.1")
}

/// A process that holds a port, until dropped.
struct Holder(Child);

impl Holder {
    fn ready(&mut self) -> Outcome {
        let stdout = self.0.stdout.as_mut().ok_or("no stdout")?;
        let mut line = [0];
        stdout.read_exact(&mut line).map_err(|error| format!("hold a port: {error}"))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The role `hold`: binds the UDP address given, says so by a line, and stays.
pub fn hold() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_default();
    match UdpSocket::bind(&address) {
        Ok(_socket) => loop {
            println!();
            thread::park();
        },
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn a_mark_is_on_the_packets() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.a.sh("ip rule add fwmark 0x57 blackhole pref 10")?;
    lab.a.set("fwmark 0x57")?;
    let shown = lab.a.sh(&format!("wg show {LINK} fwmark"))?;
    expect(shown.trim() == "0x57", "the mark", shown)?;
    let lost = lab.a.sh("ping -q -c 2 -i 0.1 -W 1 10.9.2.1");
    expect(lost.is_err(), "marked packets to be dropped by the rule", lost)?;
    lab.a.set("fwmark 0")?;
    lab.a.ping("10.9.2.1")
}

fn keepalives_are_sent() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.a.set(&format!("peer {} persistent-keepalive 1", lab.b.public_key))?;
    let start = lab.a.transfer(&lab.b.public_key)?.1;
    eventually("keepalives are sent", || {
        let now = lab.a.transfer(&lab.b.public_key)?.1;
        expect(now >= start + 3 * 32, "three messages of 32 bytes", now - start)
    })
}

fn wireguard_control_reads_and_writes_it() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let output = lab.a.this_program("control", "")?.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    expect(output.status.success(), "wireguard-control to be content", said)?;
    lab.a.ping("10.9.2.1")
}

/// The role `control`.
pub fn wireguard_control() -> ExitCode {
    match control() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn control() -> Outcome {
    let link: InterfaceName = LINK.parse().map_err(|_| "name")?;
    let read = || Device::get(&link, Backend::Userspace).map_err(|error| error.to_string());
    let before = read()?;
    expect(before.listen_port == Some(51820), "the port", before.listen_port)?;
    expect(before.private_key.is_some(), "a key", "none")?;
    let peer = before.peers.first().ok_or("no peer")?;
    expect(peer.stats.last_handshake_time.is_some(), "a handshake", "none")?;
    expect(peer.stats.rx_bytes > 0 && peer.stats.tx_bytes > 0, "counters", peer.stats.rx_bytes)?;
    expect(peer.config.allowed_ips.len() == 2, "both prefixes", peer.config.allowed_ips.len())?;

    let key = KeyPair::generate().public;
    let endpoint = "[2001:db8::9]:4500".parse().map_err(|_| "endpoint")?;
    let add = PeerConfigBuilder::new(&key)
        .set_endpoint(endpoint)
        .set_persistent_keepalive_interval(25)
        .add_allowed_ip("10.30.0.0".parse().map_err(|_| "address")?, 16);
    let apply =
        |update: DeviceUpdate| update.apply(&link, Backend::Userspace).map_err(|error| error.to_string());
    apply(DeviceUpdate::new().add_peer(add))?;
    let after = read()?;
    let added = after.peers.iter().find(|peer| peer.config.public_key == key);
    let added = added.ok_or("the new peer is not there")?;
    expect(added.config.endpoint == Some(endpoint), "its endpoint", added.config.endpoint)?;
    expect(
        added.config.persistent_keepalive_interval == Some(25),
        "its keepalive",
        added.config.persistent_keepalive_interval,
    )?;
    expect(added.stats.last_handshake_time.is_none(), "no handshake", "one")?;

    apply(DeviceUpdate::new().add_peer(PeerConfigBuilder::new(&key).remove()))?;
    let gone = read()?.peers.iter().all(|peer| peer.config.public_key != key);
    expect(gone, "the peer removed", gone)
}
