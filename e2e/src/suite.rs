//! Runs named cases one after another as `cargo test` would, skips those whose programs are
//! missing by name, closes with one line for the tier, and writes a JUnit report where a
//! folder for it is named.
//!
//! The standard harness can't skip at run time: a case that could not run would count as passed.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// One case: its name, the programs it needs, and its body.
pub struct Case {
    name: &'static str,
    needs: &'static [&'static str],
    body: fn() -> Result<()>,
    /// Why it isn't to run.
    left_out: Option<&'static str>,
}

impl Case {
    /// A case that needs these programs in PATH besides what every lab needs.
    #[must_use]
    pub fn new(name: &'static str, needs: &'static [&'static str], body: fn() -> Result<()>) -> Self {
        Self { name, needs, body, left_out: None }
    }

    /// The same case, reported as skipped for this reason.
    #[must_use]
    pub fn left_out(self, reason: &'static str) -> Self {
        Self { left_out: Some(reason), ..self }
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
const LAB: [&str; 3] = ["ip", "nft", "tcpdump"];

/// Runs the cases that the command line asks for and prints `TIER: N passed, N failed, N skipped`.
pub fn run(tier: &str, cases: Vec<Case>) -> ExitCode {
    run_with_report(tier, cases, None)
}

/// Likewise, and writes `junit-TIER.xml` into a folder.
pub fn run_with_report(tier: &str, cases: Vec<Case>, folder: Option<&Path>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A lab is several machines: two at once on a small host make timing faults.
    arguments.test_threads.get_or_insert(1);
    let records = Arc::new(Mutex::new(Vec::new()));
    let trials = cases.into_iter().map(|case| {
        let records = records.clone();
        Trial::ignorable_test(case.name, move || {
            let began = Instant::now();
            let outcome = run_case(&case);
            let mut record = TestCase::new(case.name, status(&outcome));
            record.set_time(began.elapsed());
            records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            outcome
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if arguments.list {
        return conclusion.exit_code();
    }
    let records = std::mem::take(&mut *records.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(folder) = folder
        && let Err(error) = write_report(tier, records, folder)
    {
        eprintln!("{tier}: no report: {error:#}");
        return ExitCode::FAILURE;
    }
    println!(
        "{tier}: {} passed, {} failed, {} skipped",
        conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
    );
    conclusion.exit_code()
}

fn status(outcome: &Result<Completion, Failed>) -> TestCaseStatus {
    match outcome {
        Ok(Completion::Ignored { reason }) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.clone().unwrap_or_default());
            status
        }
        Ok(_) => TestCaseStatus::success(),
        Err(failed) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(failed.message().unwrap_or_default());
            status
        }
    }
}

/// Writes FOLDER/junit-TIER.xml.
fn write_report(tier: &str, cases: Vec<TestCase>, folder: &Path) -> Result<()> {
    let (mut report, mut suite) = (Report::new(tier), TestSuite::new(tier));
    suite.add_test_cases(cases);
    report.add_test_suite(suite);
    let file = folder.join(format!("junit-{tier}.xml"));
    let text = report.to_string().context("write the report as XML")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

fn run_case(case: &Case) -> Result<Completion, Failed> {
    if let Some(reason) = case.left_out {
        return Ok(Completion::ignored_with(reason));
    }
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
        Err(error) => {
            // At once, beneath its logs: the runner's own summary comes after all cases.
            let message = format!("{error:#}");
            eprintln!("{}: {message}", case.name);
            Err(Failed::from(message))
        }
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
