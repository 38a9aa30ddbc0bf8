//! Runs named cases one after another as `cargo test` would, skips those whose programs are
//! missing by name, and closes with one line for the tier.
//!
//! The standard harness can't skip at run time: a case that could not run would count as passed.

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One case: its name, the programs it needs, and its body.
pub struct Case {
    name: &'static str,
    needs: &'static [&'static str],
    body: fn() -> Result<()>,
}

impl Case {
    /// A case that needs these programs in PATH besides what every lab needs.
    #[must_use]
    pub fn new(name: &'static str, needs: &'static [&'static str], body: fn() -> Result<()>) -> Self {
        Self { name, needs, body }
    }
}

/// Why a case can't run here, found out while it ran.
#[derive(Debug)]
struct Skipped(String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// What a case returns that can't run here: it counts as skipped, with this reason.
///
/// # Errors
/// Always: that is how a case ends early.
pub fn skip<T>(reason: &str) -> Result<T> {
    Err(Skipped(reason.to_owned()).into())
}

/// What a lab needs of a host.
const LAB: [&str; 6] = ["unshare", "nsenter", "mount", "ip", "nft", "tcpdump"];

/// Runs the cases that the command line asks for and prints `TIER: N passed, N failed, N skipped`.
pub fn run(tier: &str, cases: Vec<Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A lab is several machines: two at once on a small host make timing faults.
    arguments.test_threads.get_or_insert(1);
    let trials = cases.into_iter().map(|case| Trial::ignorable_test(case.name, move || run_case(&case)));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if !arguments.list {
        println!(
            "{tier}: {} passed, {} failed, {} skipped",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
    }
    conclusion.exit_code()
}

fn run_case(case: &Case) -> Result<Completion, Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Completion::ignored_with("needs root"));
    }
    let missing: Vec<_> = LAB.iter().chain(case.needs).filter(|program| !in_path(program)).copied().collect();
    if !missing.is_empty() {
        return Ok(Completion::ignored_with(format!("not installed: {}", missing.join(", "))));
    }
    match (case.body)() {
        Ok(()) => Ok(Completion::Completed),
        Err(error) if error.is::<Skipped>() => Ok(Completion::ignored_with(error.to_string())),
        Err(error) => Err(Failed::from(format!("{error:#}"))),
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
