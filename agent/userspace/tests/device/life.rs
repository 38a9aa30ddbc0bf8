//! Start, restart, second start, and the ways to end.

use std::path::Path;

use crate::lab::{LINK, Lab, Outcome, Test, eventually, expect};

pub const TESTS: &[Test] = &[
    ("a_signal_ends_it_and_nothing_stays", a_signal_ends_it_and_nothing_stays),
    ("deleting_the_link_ends_it", deleting_the_link_ends_it),
    ("deleting_the_link_ends_it_without_key", deleting_the_link_ends_it_without_key),
    ("a_killed_one_is_replaced", a_killed_one_is_replaced),
    ("a_second_start_is_refused", a_second_start_is_refused),
    ("a_second_start_elsewhere_is_refused", a_second_start_elsewhere_is_refused),
    ("a_link_of_another_kind_is_refused", a_link_of_another_kind_is_refused),
];

fn no_socket(path: &Path) -> Outcome {
    expect(!path.exists(), "no socket file", path)
}

fn a_signal_ends_it_and_nothing_stays() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.a.device()?.signal("TERM")?;
    let status = lab.a.device()?.ended()?;
    expect(status.success(), "exit code 0", status)?;
    no_socket(&lab.a.socket())?;
    let link = lab.a.sh(&format!("ip link show {LINK}"));
    expect(link.is_err(), "no link", link)
}

fn deleting_the_link_ends_it() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    ends_with_its_link(&mut lab)
}

fn deleting_the_link_ends_it_without_key() -> Outcome {
    let mut lab = Lab::new(1500)?;
    lab.a.start(1420)?;
    ends_with_its_link(&mut lab)
}

fn ends_with_its_link(lab: &mut Lab) -> Outcome {
    lab.a.sh(&format!("ip link del {LINK}"))?;
    let status = lab.a.device()?.ended()?;
    expect(status.success(), "exit code 0", status)?;
    no_socket(&lab.a.socket())?;
    eventually("the log says why", || {
        let log = lab.a.device()?.log();
        expect(log.contains("link deleted"), "a word on the link", log)
    })
}

fn a_killed_one_is_replaced() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    lab.b.device()?.signal("KILL")?;
    lab.b.device()?.ended()?;
    expect(lab.b.socket().exists(), "the dead one's socket", lab.b.socket())?;
    lab.b.start(1420)?;
    lab.b.know(&lab.a, "192.0.2.1:51820")?;
    lab.b.address(1420)?;
    lab.b.ping("10.9.1.1")
}

fn a_second_start_is_refused() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let second = lab.a.spawn(1420, "info")?;
    refused(second, &format!("link {LINK}"))?;
    unharmed(&mut lab)
}

/// Another network namespace and the same /run: only the socket tells.
fn a_second_start_elsewhere_is_refused() -> Outcome {
    let mut lab = Lab::joined(1500, 1420)?;
    lab.a.ping("10.9.2.1")?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = lab
        .a
        .command(&format!("timeout -s KILL 10 unshare -n {} {LINK} 1420", program.display()))
        .env("WGU_ROLE", "device")
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    expect(!output.status.success(), "a refusal", output.status)?;
    expect(said.contains(&format!("{LINK}.sock")), "the socket's name", &said)?;
    unharmed(&mut lab)
}

fn a_link_of_another_kind_is_refused() -> Outcome {
    let lab = Lab::new(1500)?;
    lab.a.sh(&format!("ip link add {LINK} type bridge"))?;
    refused(lab.a.spawn(1420, "info")?, "not a TUN link")?;
    lab.a.sh(&format!("ip link show {LINK}"))?;
    no_socket(&lab.a.socket())
}

fn refused(mut device: crate::lab::Device, word: &str) -> Outcome {
    let status = device.ended()?;
    expect(!status.success(), "a refusal", status)?;
    eventually("it says why", || {
        let log = device.log();
        expect(log.contains(word), word, log)
    })
}

fn unharmed(lab: &mut Lab) -> Outcome {
    lab.a.sh(&format!("wg show {LINK}"))?;
    lab.a.ping("10.9.2.1")?;
    let running = lab.a.device()?.is_running();
    expect(running, "the first device to run", running)
}
