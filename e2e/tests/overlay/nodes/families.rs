//! Clusters of one family, and dual-stack pods over an underlay of one.

use anyhow::{Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{Families, Lab, LabConfig, NodeConfig};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{await_peers, ping_all, pods};
use crate::look::{ensure_lossless, key_of, probing, wg_peer};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg"];
    vec![
        Case::new("a_cluster_of_ipv4_alone", needs, || cluster(Families::V4, &["10.244.0.0/16"])),
        Case::new("a_cluster_of_ipv6_alone", needs, || cluster(Families::V6, &["fd00:244::/56"])),
        Case::new("dual_stack_pods_over_ipv4", needs, || {
            cluster(Families::V4, &["10.244.0.0/16", "fd00:244::/56"])
        }),
        Case::new("dual_stack_pods_over_ipv6", needs, || {
            cluster(Families::V6, &["10.244.0.0/16", "fd00:244::/56"])
        }),
    ]
}

fn cluster(underlay: Families, pod_networks: &[&str]) -> Result<()> {
    let mut config = LabConfig { nodes: 0, ..LabConfig::default() };
    config.agent.insert("podCIDRs".into(), json!(pod_networks));
    Lab::test(config, |lab| {
        for number in 1..=2 {
            let all = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")];
            let family = |net: &String| pod_networks.iter().any(|n| n.contains(':') == net.contains(':'));
            let pod_cidrs = Some(all.into_iter().filter(family).collect());
            lab.add_node(NodeConfig { families: underlay, pod_cidrs, ..NodeConfig::default() })?
                .start_agent(&[])?;
        }
        for node in lab.nodes() {
            await_peers(node, 1)?;
        }
        let all = pods(lab)?;
        ensure!(all.iter().all(|pod| pod.ips().len() == pod_networks.len()), "a pod lacks a family");
        ping_all(&all)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        ensure_lossless(&mut prober, "steady traffic")?;
        let endpoint = wg_peer(lab.node(1)?, &key_of(lab, "n2")?)?.map(|peer| peer.endpoint);
        let expected = match underlay {
            Families::V6 => "[fd00:30::c]:51820",
            Families::Dual | Families::V4 => "172.30.0.12:51820",
        };
        ensure!(endpoint.as_deref() == Some(expected), "{endpoint:?}");
        Ok(())
    })
}
