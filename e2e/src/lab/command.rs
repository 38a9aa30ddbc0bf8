//! Running programs: an error names the command, its status and what it said; where the programs
//! of this crate and of the product are.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// It can't start or fails: the error holds its command line, status, output and errors.
pub fn run(command: &mut Command) -> Result<String> {
    let line = words(command);
    let output = command.output().with_context(|| format!("start `{line}`"))?;
    said(&line, output)
}

/// Likewise, with a text as its standard input.
///
/// # Errors
/// As `run`.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let line = words(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start `{line}`"))?;
    // It may end before it has read all: its status and message say why.
    let _cut = child.stdin.take().context("no stdin")?.write_all(input.as_bytes());
    said(&line, child.wait_with_output()?)
}

fn said(line: &str, output: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}`: {}: {}{}", output.status, stderr.trim(), stdout.trim());
    }
    Ok(stdout)
}

/// The command's words after `machine enter … --`, for messages.
pub(super) fn words(command: &Command) -> String {
    let all: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let own = all.iter().position(|word| *word == "--").map_or(0, |at| at + 1);
    all.iter().skip(own).map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A program of this crate (`machine`, `node-api`, `prober`): from `WG_OVERLAY_E2E_BIN_DIR`, else beside the
/// test executable or in the folder above, where cargo puts it.
///
/// # Errors
/// It is in none of them.
pub fn helper(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this executable")?;
    let beside = own.ancestors().skip(1).take(2).map(Path::to_owned);
    let named = std::env::var_os("WG_OVERLAY_E2E_BIN_DIR").map(PathBuf::from);
    let found = named.into_iter().chain(beside).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("no program {name}: cargo build -p wg-overlay-e2e, or set WG_OVERLAY_E2E_BIN_DIR")
    })
}

/// A program of the product (`wg-overlay`, `wg-overlay-cni`) in `WG_OVERLAY_BIN_DIR`. Nodes see it
/// too unless the folder lies in `/run`, `/opt`, `/etc` or `/var/lib`.
///
/// # Errors
/// The variable isn't set, or the program isn't there.
pub fn product(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("WG_OVERLAY_BIN_DIR").context("WG_OVERLAY_BIN_DIR is not set")?;
    let path = std::path::absolute(Path::new(&folder).join(name))?;
    if !path.is_file() {
        bail!("WG_OVERLAY_BIN_DIR has no {name}: {}", path.display());
    }
    Ok(path)
}
