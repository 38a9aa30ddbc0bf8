//! What strangers may throw at the port, and anybody with the socket at the socket.

use std::{
    io::{Read, Write},
    net::UdpSocket,
    os::unix::net::UnixStream,
    process::ExitCode,
    time::Duration,
};

use crate::lab::{LINK, Lab, Outcome, Test, expect};

pub const TESTS: &[Test] = &[
    ("noise_at_the_port_does_no_harm", noise_at_the_port_does_no_harm),
    ("noise_at_the_socket_does_no_harm", noise_at_the_socket_does_no_harm),
    ("keys_are_never_logged", keys_are_never_logged),
];

fn noise_at_the_port_does_no_harm() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    for to in ["192.0.2.1:51820", "[2001:db8::1]:51820"] {
        let output = lab.b.this_program("noise", to)?.output();
        let status = output.map_err(|error| error.to_string())?.status;
        expect(status.success(), "the noise to be sent", status)?;
    }
    let answered = lab.a.ping("10.9.2.1");
    let device = lab.a.device()?;
    expect(device.is_running(), "the device to run", device.log())?;
    // A task that panics takes its half of the tunnel along and leaves the process.
    expect(!device.log().contains("panicked"), "no panic", device.log())?;
    answered
}

/// The role `noise`: datagrams of every size and message type, from a fixed sequence.
pub fn main() -> ExitCode {
    let Some(to) = std::env::args().nth(1) else {
        return ExitCode::FAILURE;
    };
    let Ok(socket) = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0")) else {
        return ExitCode::FAILURE;
    };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..4_800_usize {
        let mut datagram: Vec<u8> = (0..round % 1_600).map(|_| random().to_le_bytes()[0]).collect();
        // Half of them begin as WireGuard's four messages do.
        if round % 2 == 0 && datagram.len() >= 4 {
            datagram.splice(..4, [u8::try_from(round / 2 % 5).unwrap_or(0), 0, 0, 0]);
        }
        // A full queue loses some, that is no failure.
        let _ = socket.send_to(&datagram, &to);
    }
    ExitCode::SUCCESS
}

fn noise_at_the_socket_does_no_harm() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let keys = lab.a.sh(&format!("wg showconf {LINK}"))?;
    let endless = vec![b'x'; 40 << 20];
    let deep = b"set=1\n".repeat(1_000);
    let noise: [&[u8]; 12] = [
        b"\n",
        b"\n\n\n\n",
        b"hello\n\n",
        b"get=2\n\n",
        b"get=1\nset=1\n\n",
        b"set=1\nlisten_port=70000\n\n",
        b"set=1\nprivate_key=xyz\n\n",
        b"set=1\npublic_key=00\nallowed_ip=10.0.0.0/33\n\n",
        b"set=1\n\xff\xfe\xfd\n\n",
        b"set=1\nlisten_port=1",
        &endless,
        &deep,
    ];
    for bytes in noise {
        let mut stream = UnixStream::connect(lab.a.socket()).map_err(|error| error.to_string())?;
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).map_err(|error| error.to_string())?;
        // The device may hang up first.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let done = answer.contains("errno=0");
        expect(!done, "no success", (String::from_utf8_lossy(bytes.get(..20).unwrap_or(bytes)), answer))?;
    }
    // Connections that say nothing keep nobody out.
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(lab.a.socket())).collect();
    let after = lab.a.sh(&format!("wg showconf {LINK}"))?;
    drop(silent);
    expect(after == keys, "the configuration unchanged", after)?;
    lab.a.ping("10.9.2.1")?;
    let running = lab.a.device()?.is_running();
    expect(running, "the device to run", running)
}

/// Not even where everything is logged, nor where the request cannot be read.
fn keys_are_never_logged() -> Outcome {
    let mut lab = Lab::new(1500)?;
    lab.a.start_logging(1420, "trace")?;
    lab.b.start(1420)?;
    lab.a.know(&lab.b, "192.0.2.2:51820")?;
    lab.b.know(&lab.a, "192.0.2.1:51820")?;
    lab.a.sh("wg genpsk > /run/psk")?;
    lab.a.set(&format!("peer {} preshared-key /run/psk", lab.b.public_key))?;
    lab.a.set(&format!("peer {} preshared-key /dev/null", lab.b.public_key))?;
    lab.a.address(1420)?;
    lab.b.address(1420)?;
    lab.a.ping("10.9.2.1")?;
    let hex = |file: &str| lab.a.sh(&format!("base64 -d {file} | od -An -v -tx1 | tr -d ' \\n'"));
    let private = hex("/run/key")?;
    let shared = hex("/run/psk")?;
    for request in [
        format!("set=1\nprivate_key={private}0\n\n"),
        format!("set=1\nprivatekey={private}\n\n"),
        format!("{private}\n\n"),
        format!("set=1\n{private}={private}\n\n"),
    ] {
        let mut stream = UnixStream::connect(lab.a.socket()).map_err(|error| error.to_string())?;
        stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        stream.shutdown(std::net::Shutdown::Write).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        expect(answer == "errno=-22\n\n", "EINVAL", answer)?;
    }
    let psk = lab.a.sh("cat /run/psk")?;
    let log = lab.a.device()?.log();
    expect(log.contains("TRACE"), "a log that tells all", log.len())?;
    let decimal = |hex: &str| -> String {
        // As a list of bytes, the way that Debug writes an array.
        let bytes = hex.as_bytes().chunks(2).map(|pair| {
            u8::from_str_radix(&String::from_utf8_lossy(pair), 16).unwrap_or_default().to_string()
        });
        bytes.collect::<Vec<_>>().join(", ")
    };
    for secret in [
        private.clone(),
        shared.clone(),
        decimal(&private),
        decimal(&shared),
        lab.a.private_key.clone(),
        psk.trim().to_owned(),
    ] {
        expect(!log.contains(&secret), "a log without keys", "one of them")?;
    }
    Ok(())
}
