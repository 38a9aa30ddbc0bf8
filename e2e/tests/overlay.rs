//! The product, end to end: agents, devices and the CNI plugin on nodes of the lab, seen only through what a user has.
//!
//! The same executable runs here on the user-space device and in a virtual machine on the kernel's.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is missing")]

use std::process::ExitCode;

use wg_overlay_e2e::look::{self, converged as cluster, kernel};
use wg_overlay_e2e::suite::run;

#[path = "overlay/boot.rs"]
mod boot;
#[path = "overlay/connectivity.rs"]
mod connectivity;
#[path = "overlay/contained.rs"]
mod contained;
#[path = "overlay/doctor.rs"]
mod doctor;
#[path = "overlay/endpoints.rs"]
mod endpoints;
#[path = "overlay/faults.rs"]
mod faults;
#[path = "overlay/forwarding.rs"]
mod forwarding;
#[path = "overlay/guard_rules.rs"]
mod guard_rules;
#[path = "overlay/guards.rs"]
mod guards;
#[path = "overlay/handshakes.rs"]
mod handshakes;
#[path = "overlay/key_rotation.rs"]
mod key_rotation;
#[path = "overlay/killed.rs"]
mod killed;
#[path = "overlay/killed_starts.rs"]
mod killed_starts;
#[path = "overlay/killed_steps.rs"]
mod killed_steps;
#[path = "overlay/mtu.rs"]
mod mtu;
#[path = "overlay/nodes.rs"]
mod nodes;
#[path = "overlay/pods.rs"]
mod pods;
#[path = "overlay/port_guard.rs"]
mod port_guard;
#[path = "overlay/refusals.rs"]
mod refusals;
#[path = "overlay/repair.rs"]
mod repair;
#[path = "overlay/services.rs"]
mod services;
#[path = "overlay/uninstall.rs"]
mod uninstall;
#[path = "overlay/witness.rs"]
mod witness;

/// Why a case isn't run under emulation, where it would take minutes.
const SLOW: &str = "has nothing to do with the device, and takes minutes here; make kernel-wg-all runs it";

/// Why a case isn't run under emulation, step by step.
const TRACED: &str =
    "goes through an agent's steps one by one, which takes minutes here; make kernel-wg-all runs it";

/// Why a case isn't run beside so many others.
const WAITS: &str = "waits for minutes, on a device as on the other; make kernel-wg-all runs it";

fn main() -> ExitCode {
    let tier = std::env::var("WG_OVERLAY_TIER").unwrap_or_else(|_| "overlay".to_owned());
    let short = tier == "kernel-wg" && std::env::var_os("WG_OVERLAY_KERNEL_ALL").is_none();
    let deviceless = [refusals::bad_input_cases(), faults::api_cases()].into_iter().flatten();
    let deviceless = deviceless.map(|case| if short { case.left_out(SLOW) } else { case }).collect();
    let traced =
        [killed_starts::cases(), killed_steps::cases(), faults::traced_cases()].into_iter().flatten();
    let traced = traced.map(|case| if short { case.left_out(TRACED) } else { case }).collect();
    let waiting = [key_rotation::waiting_cases(), handshakes::cases()].into_iter().flatten();
    let waiting = waiting.map(|case| if short { case.left_out(WAITS) } else { case }).collect();
    let cases = [
        connectivity::cases(),
        services::cases(),
        repair::cases(),
        killed::cases(),
        key_rotation::cases(),
        guards::cases(),
        guard_rules::cases(),
        forwarding::cases(),
        mtu::cases(),
        boot::cases(),
        pods::cases(),
        port_guard::cases(),
        uninstall::cases(),
        contained::cases(),
        nodes::cases(),
        refusals::cases(),
        endpoints::cases(),
        faults::cases(),
        doctor::cases(),
        deviceless,
        traced,
        waiting,
    ];
    run(&tier, cases.into_iter().flatten().collect())
}
