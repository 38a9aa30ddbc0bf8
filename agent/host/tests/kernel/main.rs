//! The host against a real kernel: links, addresses, routes, peers, events and sysctls, each test in network and mount
//! namespaces of its own.
//!
//! Kernel WireGuard where this kernel has it; otherwise the user-space device that `WG_OVERLAY_TEST_DEVICE` names, or
//! `wireguard-go`. Needs root and the programs; without them every test is listed as ignored, with the reason.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use nix::sched::{CloneFlags, unshare};

mod events;
mod lab;
mod links;
mod next;
mod peers;
mod routes;
mod sysctls;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let missing = missing();
    let tests =
        [links::TESTS, next::TESTS, routes::TESTS, peers::TESTS, events::TESTS, sysctls::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            lab::isolated(test);
            Ok(())
        });
        match &missing {
            None => trial,
            Some(reason) => trial.with_kind(format!("skipped: {reason}")).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// What this machine lacks for these tests.
fn missing() -> Option<String> {
    if !matches!(std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join(), Ok(Ok(()))) {
        return Some("no right to make network namespaces (root)".to_owned());
    }
    for program in ["ip", "nft"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Some(format!("no {program}"));
        }
    }
    let kernel = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Command::new("ip")
            .args(["link", "add", "probe", "type", "wireguard"])
            .output()
            .unwrap()
            .status
            .success()
    });
    let program = lab::device_program().program;
    let user_space = Command::new(&program).arg("--version").output().is_ok();
    (!kernel.join().unwrap() && !user_space)
        .then(|| format!("no WireGuard in the kernel, and no {}", program.display()))
}
