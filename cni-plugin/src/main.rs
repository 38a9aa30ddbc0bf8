//! `wg-overlay-cni`: run by a container runtime, see the CNI specification 1.1.0.

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;

/// musl's own gives a buffer's pages back to the kernel as soon as it is free, and takes others for the next.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    wg_overlay_cni::plugin::run()
}
