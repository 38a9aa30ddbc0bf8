//! Tests of the lab itself: if these fail, nothing that the lab says of the product counts.

use std::process::ExitCode;

use wg_overlay_e2e::suite::run;

#[path = "lab/underlay.rs"]
mod underlay;

fn main() -> ExitCode {
    run("lab", underlay::cases())
}
