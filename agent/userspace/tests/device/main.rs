//! The device as a process, between namespaces, driven by what a user has: `ip`, `wg`, `ping`.
//!
//! Needs root, /dev/net/tun and the tools; without them every test is listed as ignored, with the
//! reason. The program is also the device that it tests, and the noise that is thrown at it.

use std::{fs::File, process::ExitCode};

use libtest_mimic::{Arguments, Trial};

#[path = "../../examples/device.rs"]
mod device;

mod configuration;
mod lab;
mod life;
mod noise;
mod packets;
mod sessions;
mod standby;
mod traffic;

fn main() -> ExitCode {
    match std::env::var("WGU_ROLE").as_deref() {
        Ok("device") => return device::main(),
        Ok("burst") => return packets::burst(),
        Ok("echo") => return packets::echo(),
        Ok("values") => return packets::values(),
        Ok("noise") => return noise::main(),
        Ok("flood") => return traffic::flood(),
        Ok("hold") => return configuration::hold(),
        Ok("initiator") => return sessions::initiator(),
        Ok("standby") => return standby::sleeper(),
        Ok("control") => return configuration::wireguard_control(),
        _ => {}
    }
    let missing = missing();
    let tests = life::TESTS
        .iter()
        .chain(packets::TESTS)
        .chain(configuration::TESTS)
        .chain(noise::TESTS)
        .chain(sessions::TESTS)
        .chain(standby::TESTS)
        .chain(traffic::TESTS);
    let trials = tests
        .map(|(name, test)| {
            let trial = Trial::test(*name, || test().map_err(Into::into));
            match &missing {
                None => trial,
                Some(reason) => trial.with_kind(format!("skipped: {reason}")).with_ignored_flag(true),
            }
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What this machine lacks for these tests.
fn missing() -> Option<String> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun: {error}"));
    }
    for tool in ["ip", "wg", "nsenter", "ping", "iperf3", "ethtool", "nft", "ss"] {
        if lab::sh(&format!("command -v {tool}")).is_err() {
            return Some(format!("no {tool}"));
        }
    }
    let namespace = format!("wgu-{}-probe", std::process::id());
    lab::sh(&format!("ip netns add {namespace} && ip netns del {namespace}")).err()
}
