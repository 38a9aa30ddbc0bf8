//! Our nftables table and the host's chains, in network namespaces, with packets.
//!
//! Needs root and the programs; without them every test is listed as ignored, with the reason.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use nix::sched::{CloneFlags, unshare};
use wg_overlay_host::Nft;

mod attached;
mod chains;
mod guards;
mod handshakes;
mod lab;
mod netns;
mod packets;
mod port_sets;
mod ports;
mod raw;
mod table;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    if std::env::var("WGN_ROLE").as_deref() == Ok("observe") {
        return observe();
    }
    let missing = missing();
    let tests = [
        table::TESTS,
        packets::TESTS,
        guards::TESTS,
        handshakes::TESTS,
        chains::TESTS,
        ports::TESTS,
        port_sets::TESTS,
    ];
    let trials = tests
        .into_iter()
        .flatten()
        .map(|(name, test)| {
            let trial = Trial::test(*name, || {
                test();
                Ok(())
            });
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
    for program in ["ip", "nft", "iptables-nft", "iptables-legacy", "ip6tables-legacy"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Some(format!("no {program}"));
        }
    }
    let own_namespace = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    match own_namespace {
        Ok(Ok(())) => None,
        _ => Some("no right to make network namespaces (root)".to_owned()),
    }
}

/// The test's own program with another PATH, which belongs to a process: prints what it observes.
fn observe() -> ExitCode {
    match Nft::open(&std::env::temp_dir()).and_then(|nft| nft.observe(51820)) {
        Ok(found) => {
            found.host_chains.iter().for_each(|(chain, state)| println!("{chain} {state:?}"));
            found.warnings.iter().for_each(|warning| println!("{warning}"));
        }
        Err(error) => println!("{error}"),
    }
    ExitCode::SUCCESS
}
