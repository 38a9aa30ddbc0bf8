//! The plugin as a runtime sees it: the built binary, run in network and mount namespaces of its own.
//!
//!     node (network + mount namespace, tmpfs on /run)          pod namespaces under /run/netns
//!       wgobr0 10.244.1.1/24, fd00:244:0:1::1/64  ──veth──  eth0 10.244.1.2, fd00:244:0:1::2
//!
//! Needs root, `ip`, `nft`, `nsenter`, `timeout` and `unshare`; without them each test is reported as ignored, with the reason in its name.

// The lints' exception for tests covers functions with #[test] only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod attach;
mod bad_input;
mod check;
mod cnitool;
mod host;
mod kill;
mod lab;
mod port_guard;
mod remove;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

/// A test's name, and the test.
type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let lacks = lacks();
    let trials = [
        attach::TESTS,
        bad_input::TESTS,
        check::TESTS,
        host::TESTS,
        kill::TESTS,
        port_guard::TESTS,
        remove::TESTS,
    ]
    .concat()
    .into_iter()
    .map(|(name, test)| (name, None, test))
    .chain([(cnitool::TEST.0, cnitool::lacks(), cnitool::TEST.1)])
    .map(|(name, lacks_more, test)| match lacks.clone().or(lacks_more) {
        Some(reason) => Trial::test(format!("{name} [skipped: {reason}]"), test).with_ignored_flag(true),
        None => Trial::test(name, test),
    })
    .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn lacks() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("not root".to_owned());
    }
    let missing = |program: &&str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    };
    ["ip", "nft", "nsenter", "timeout", "unshare"]
        .iter()
        .find(|p| missing(p))
        .map(|program| format!("{program} is missing"))
}
