//! The product on a running Kubernetes of several nodes whose only pod network it is, seen only through what a user has:
//! kubectl, programs on nodes, packets.
//!
//! `cluster/cluster up` starts that cluster; without one, every case is skipped. With `WG_OVERLAY_E2E_FULL=1` the long
//! forms and the cases that change the whole installation run too.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is missing")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wg_overlay_e2e::suite::run_with_report;

#[path = "cluster/access.rs"]
mod access;
#[path = "cluster/boot.rs"]
mod boot;
#[path = "cluster/common.rs"]
mod common;
#[path = "cluster/crash.rs"]
mod crash;
#[path = "cluster/installation.rs"]
mod installation;
#[path = "cluster/many.rs"]
mod many;
#[path = "cluster/migration.rs"]
mod migration;
#[path = "cluster/packets.rs"]
mod packets;
#[path = "cluster/policy.rs"]
mod policy;
#[path = "cluster/restarts.rs"]
mod restarts;
#[path = "cluster/underlay.rs"]
mod underlay;
#[path = "cluster/versions.rs"]
mod versions;

fn main() -> ExitCode {
    let tier = std::env::var("WG_OVERLAY_TIER").unwrap_or_else(|_| "cluster".to_owned());
    // The captures run from the first case to the last.
    let cases = [
        underlay::first(),
        access::cases(),
        packets::cases(),
        policy::cases(),
        restarts::cases(),
        versions::cases(),
        many::cases(),
        crash::cases(),
        boot::cases(),
        underlay::last(),
        // These take the network away, and bring it back.
        installation::cases(),
        migration::cases(),
    ];
    let folder = std::env::var_os("WG_OVERLAY_REPORT").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("report"));
    run_with_report(&tier, cases.into_iter().flatten().collect(), Some(&folder))
}
