//! The first and the last case: what was on the underlay while all others ran.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::lab::Capture;
use wg_overlay_e2e::suite::{Case, skip};

use crate::common::cluster;

static RUNNING: Mutex<Option<(Capture, PathBuf)>> = Mutex::new(None);

pub fn first() -> Vec<Case> {
    vec![Case::new("a_plaintext_packet_on_the_underlay_is_seen", &[], start)]
}

pub fn last() -> Vec<Case> {
    vec![Case::new("no_pod_packet_was_on_the_underlay_outside_the_tunnel", &[], verdict)]
}

fn start() -> Result<()> {
    let cluster = cluster()?;
    let folder = std::env::temp_dir().join(format!("wgo-e2e-cluster-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut capture = cluster.capture(&folder)?;
    capture.positive_control()?;
    let report = capture.report()?;
    ensure!(report.positive_controls == 2, "{report}");
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some((capture, folder));
    Ok(())
}

fn verdict() -> Result<()> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((mut capture, folder)) = running else { return skip("no capture was started") };
    capture.positive_control().context("at the end of the suite")?;
    let report = capture.stop()?;
    println!("{report}");
    report.assert_no_plaintext()?;
    ensure!(report.class("wireguard").packets > 0, "the captures saw no WireGuard at all");
    Ok(std::fs::remove_dir_all(folder)?)
}
