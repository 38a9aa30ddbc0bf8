//! `peak-rss PROGRAM [ARGUMENT]...` runs a program and says on its last line of standard error what it and its children
//! needed of memory at most, in KiB (`ru_maxrss`).
//!
//! The kernel counts the starter's own memory up to the exec as the program's (`setmax_mm_hiwater_rss` in `exec_mmap`,
//! fs/exec.c), so the starter has to be this small one, and no figure can be below its own.

use std::process::{Command, ExitCode};

use nix::sys::resource::{UsageWho, getrusage};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: peak-rss PROGRAM [ARGUMENT]...");
        return ExitCode::FAILURE;
    };
    let status = match Command::new(&program).args(words).status() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("start {}: {error}", program.display());
            return ExitCode::FAILURE;
        }
    };
    match getrusage(UsageWho::RUSAGE_CHILDREN) {
        Ok(usage) => eprintln!("{}", usage.max_rss()),
        Err(error) => eprintln!("getrusage: {error}"),
    }
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
