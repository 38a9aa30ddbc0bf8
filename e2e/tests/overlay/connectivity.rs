//! Packets arrive: pod to pod, node to pod, pod to the outside.

use anyhow::Result;
use wg_overlay_e2e::suite::Case;

use crate::cluster::{ping_all, pods, with_agents};

pub fn cases() -> Vec<Case> {
    vec![Case::new("pods_on_different_nodes_reach_each_other", &["ping", "wg"], pods_reach_each_other)]
}

fn pods_reach_each_other() -> Result<()> {
    with_agents(2, |lab| ping_all(&pods(lab)?))
}
