//! The product, end to end: agents, devices and the CNI plugin on nodes of the lab, seen only through what a user has.
//!
//! The same executable runs here on the user-space device and in a virtual machine on the kernel's.

use std::process::ExitCode;

use wg_overlay_e2e::suite::run;

#[path = "overlay/cluster.rs"]
mod cluster;
#[path = "overlay/connectivity.rs"]
mod connectivity;

fn main() -> ExitCode {
    let tier = std::env::var("WG_OVERLAY_TIER").unwrap_or_else(|_| "overlay".to_owned());
    run(&tier, connectivity::cases())
}
