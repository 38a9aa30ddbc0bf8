//! `wg-overlay-cni`: run by a container runtime, see the CNI specification 1.1.0.

use std::process::ExitCode;

fn main() -> ExitCode {
    wg_overlay_cni::plugin::run()
}
