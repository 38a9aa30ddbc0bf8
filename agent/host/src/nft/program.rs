//! Running a program of the host: its input, its output, its refusal.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use serde_json::Value;
use thiserror::Error;

use super::NftError;

/// Why a program gave no answer.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It isn't there.
    #[error("{program} is not in the PATH: install the package `{package}`")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it, in Debian and Alpine alike.
        package: &'static str,
    },
    /// It could not be run.
    #[error("can't run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It ran and refused.
    #[error("{program} {arguments}: {message}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its arguments.
        arguments: String,
        /// What it wrote on standard error.
        message: String,
    },
}

impl ProgramError {
    /// Whether the object that was asked for doesn't exist.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("No such file or directory"))
    }
}

/// Runs a program with this text on its standard input, and gives its standard output.
pub(super) fn run(
    program: &'static str,
    arguments: &[&str],
    input: Option<&str>,
) -> Result<String, ProgramError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing { program, package: package(program) },
        _ => ProgramError::Run { program, source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    // A program that ends before it has read everything says why on its standard error.
    let written = match (child.stdin.take(), input) {
        (Some(mut stdin), Some(text)) => stdin.write_all(text.as_bytes()),
        _ => Ok(()),
    };
    let output = child.wait_with_output().map_err(fail)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ProgramError::Refused { program, arguments: arguments.join(" "), message });
    }
    written.map_err(fail)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn package(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}

/// Asks `nft` for a listing: the objects of its answer, each under its kind's name.
pub(super) fn list(arguments: &[&str]) -> Result<Vec<Value>, NftError> {
    let arguments = [&["-j", "list"], arguments].concat();
    let answer = run("nft", &arguments, None)?;
    objects(&answer).map_err(|source| NftError::Answer {
        program: "nft",
        arguments: arguments.join(" "),
        expected: "JSON with a list `nftables` (libnftables-json(5))",
        source,
    })
}

/// The objects of a listing; the error has no cause where it is JSON of another shape.
pub(super) fn objects(answer: &str) -> Result<Vec<Value>, Option<serde_json::Error>> {
    let mut answer: Value = serde_json::from_str(answer).map_err(Some)?;
    match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Err(None),
    }
}

/// The same, where the object may be absent.
pub(super) fn list_existing(arguments: &[&str]) -> Result<Option<Vec<Value>>, NftError> {
    match list(arguments) {
        Ok(objects) => Ok(Some(objects)),
        Err(NftError::Program(e)) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}
