//! When a session begins, and when the device says so.

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    net::UdpSocket,
    process::{ChildStdin, ChildStdout, ExitCode, Stdio},
};

use gotatun::{
    noise::{Tunn, TunnResult, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::Packet,
    x25519::{PublicKey, StaticSecret},
};

use crate::lab::{LINK, Lab, Outcome, Test, eventually, expect, sh};

pub const TESTS: &[Test] = &[
    ("a_keepalive_makes_a_session_at_once", a_keepalive_makes_a_session_at_once),
    ("a_new_key_takes_the_peers_along", a_new_key_takes_the_peers_along),
    ("a_handshake_counts_once_the_peer_has_the_answer", a_handshake_counts_once_the_peer_has_the_answer),
];

/// The private key of the role `initiator`.
const KEY: [u8; 32] = [7; 32];

fn handshake(lab: &Lab) -> Outcome<[String; 2]> {
    let (a, b) = (&lab.a, &lab.b);
    Ok([a.show("latest-handshakes", &b.public_key)?, b.show("latest-handshakes", &a.public_key)?])
}

/// At both ends, and without any other packet.
fn a_keepalive_makes_a_session_at_once() -> Outcome {
    let lab = Lab::joined(1500, 1420)?;
    let before = handshake(&lab)?;
    expect(before == ["0", "0"], "no session", before)?;
    lab.a.set(&format!("peer {} persistent-keepalive 600", lab.b.public_key))?;
    eventually("a session at both ends", || {
        let now = handshake(&lab)?;
        expect(!now.contains(&"0".to_owned()), "a time", now)
    })
}

/// In one request, as the agent writes it.
fn a_new_key_takes_the_peers_along() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.a.private_key = sh("wg genkey")?.trim().to_owned();
    let key = sh(&format!("echo {} | wg pubkey", lab.a.private_key))?.trim().to_owned();
    lab.a.sh(&format!(
        "printf '[Interface]\\nPrivateKey={}\\nListenPort=51820\\n' > /run/conf && wg setconf {LINK} /run/conf",
        lab.a.private_key
    ))?;
    let peers = lab.a.sh(&format!("wg show {LINK} peers"))?;
    expect(peers.is_empty(), "no peer", peers)?;
    lab.b.set(&format!("peer {} remove", lab.a.public_key))?;
    lab.a.public_key = key;
    lab.b.know(&lab.a, "192.0.2.1:51820")?;
    lab.a.know(&lab.b, "192.0.2.2:51820")?;
    lab.a.ping("10.9.2.1")
}

fn a_handshake_counts_once_the_peer_has_the_answer() -> Outcome {
    let mut lab = Lab::new(1500)?;
    lab.a.start(1420)?;
    let hex = |key: &str| sh(&format!("echo {key} | base64 -d | od -An -v -tx1 | tr -d ' \\n'"));
    let initiator = sh(&format!("printf '{}' | base64 | wg pubkey", "\\007".repeat(32)))?.trim().to_owned();
    lab.a.set(&format!("private-key /run/key listen-port 51820 peer {initiator} allowed-ips 10.9.2.0/24"))?;
    let mut role = lab
        .b
        .this_program("initiator", &hex(&lab.a.public_key)?)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let (Some(stdin), Some(stdout)) = (role.stdin.take(), role.stdout.take()) else {
        return Err("no pipes".to_owned());
    };
    let outcome = answered_then_confirmed(&lab, &initiator, stdin, BufReader::new(stdout));
    let _ = role.kill();
    let _ = role.wait();
    outcome
}

fn answered_then_confirmed(
    lab: &Lab,
    initiator: &str,
    mut stdin: ChildStdin,
    mut stdout: BufReader<ChildStdout>,
) -> Outcome {
    let mut said = String::new();
    stdout.read_line(&mut said).map_err(|error| error.to_string())?;
    expect(said == "answered\n", "an answer", &said)?;
    let unconfirmed = lab.a.show("latest-handshakes", initiator)?;
    expect(unconfirmed == "0", "no session yet", unconfirmed)?;
    stdin.write_all(b"go on\n").map_err(|error| error.to_string())?;
    eventually("a session", || {
        let now = lab.a.show("latest-handshakes", initiator)?;
        expect(now != "0", "a time", now)
    })
}

/// The role `initiator`: a handshake, and once it is answered and told to go on, the first packet of the session.
pub fn initiator() -> ExitCode {
    let run = || -> Result<(), Box<dyn Error>> {
        let key = std::env::args().nth(1).ok_or("no key")?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(key.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
        }
        let private = StaticSecret::from(KEY);
        let limiter = RateLimiter::new(&PublicKey::from(&private), 100);
        let indices = IndexTable::from_os_rng();
        let mut tunnel = Tunn::new(private, PublicKey::from(bytes), None, None, indices, limiter.into());
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:51820")?;
        socket.send(&Packet::from(tunnel.format_handshake_initiation(true).ok_or("no message")?))?;
        let mut answer = vec![0; 200];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        let answer = Packet::copy_from(answer.as_slice()).try_into_wg()?;
        let TunnResult::WriteToNetwork(first) = tunnel.handle_incoming_packet(answer) else {
            return Err("another answer".into());
        };
        println!("answered");
        std::io::stdin().read_line(&mut String::new())?;
        socket.send(&Packet::from(first))?;
        Ok(())
    };
    crate::packets::finish(run())
}
