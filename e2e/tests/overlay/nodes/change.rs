//! What a node is or says of itself changes: its address, PodCIDR, port, key.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{LabConfig, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status, with_agents, with_config};
use crate::look::{
    await_peer, ensure_lossless, key_of, metric, plan, probing, routes, shown, wg_peer, wg_peers,
};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("an_internal_ip_changes", needs, internal_ip),
        Case::new("a_pod_cidr_changes", needs, pod_cidr),
        Case::new("a_listen_port_changes", needs, listen_port),
        Case::new("a_key_rotates", needs, key_rotates),
        Case::new("legacy_annotations_are_read_and_written", needs, legacy),
    ]
}

fn internal_ip() -> Result<()> {
    with_agents(3, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let [one, _, three] = all.as_slice() else { anyhow::bail!("not three pods") };
        let mut prober = probing(lab, &[one, three])?;
        lab.readdress(2, 99)?;
        let key = key_of(lab, "n2")?;
        for node in [lab.node(1)?, lab.node(3)?] {
            await_peer(node, &key, "n2's endpoint follows", |peer| peer.endpoint == "172.30.0.99:51820")?;
        }
        ping_all(&all)?;
        ensure_lossless(&mut prober, "another node's address changes")
    })
}

fn pod_cidr() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        let [one, old] = all.as_slice() else { anyhow::bail!("not two pods") };
        ping_all(&all)?;
        let (first, second) = (lab.node(1)?, lab.node(2)?);
        let new_cidrs = ["10.244.22.0/24", "fd00:244:0:22::/64"];
        lab.api().patch_node("n2", &json!({ "spec": { "podCIDR": new_cidrs[0], "podCIDRs": new_cidrs } }))?;
        let key = key_of(lab, "n2")?;
        await_peer(first, &key, "n2's peer has the new PodCIDRs alone", |peer| {
            peer.allowed_ips == new_cidrs
        })?;
        eventually(PATIENCE, "n1's routes follow", || {
            let routes = routes(first)?;
            ensure!(new_cidrs.iter().all(|net| routes.contains(net)), "{routes}");
            ensure!(!routes.contains("10.244.2.0/24") && !routes.contains("fd00:244:0:2::"), "{routes}");
            Ok(())
        })?;

        let addresses = || second.exec("ip", ["-o", "addr", "show", "dev", "wgobr0"]);
        let has = |address: &str| Ok::<_, anyhow::Error>(addresses()?.contains(address));
        eventually(PATIENCE, "n2's bridge has the new gateway", || {
            ensure!(has("10.244.22.1/24")? && has("fd00:244:0:22::1/64")?, "{}", addresses()?);
            Ok(())
        })?;
        ensure!(
            has("10.244.2.1/24")? && has("fd00:244:0:2::1/64")?,
            "the old gateway went: {}",
            addresses()?
        );
        let named = status(second)?["podsOnOldCidrs"].to_string();
        let id = &old.attachment().container_id;
        ensure!(named.contains(id.as_str()), "status does not name the pod {id}: {named}");
        let text = plan(second)?;
        ensure!(text.contains("as it should be"), "plan would change what the agent keeps: {text}");

        let new = second.add_pod("new")?;
        ensure!(new.ipv4()?.to_string().starts_with("10.244.22."), "{:?}", new.ips());
        ensure!(new.ipv6()?.to_string().starts_with("fd00:244:0:22:"), "{:?}", new.ips());
        for ip in new.ips() {
            eventually(PATIENCE, "the new pod is reached from afar", || one.ping(*ip))?;
            eventually(PATIENCE, "the new pod is reached from the old one", || old.ping(*ip))?;
        }
        for pod in all {
            if pod.node() == "n2" {
                pod.remove()?;
            }
        }
        eventually(PATIENCE, "the old gateway goes with its last pod", || {
            let text = addresses()?;
            ensure!(!text.contains("10.244.2.1/24") && !text.contains("fd00:244:0:2::1/64"), "{text}");
            Ok(())
        })?;
        ensure!(status(second)?["podsOnOldCidrs"] == json!([]), "status still names the pod");
        Ok(())
    })
}

fn listen_port() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let second = lab.node(2)?;
        second.stop_agent()?;
        second.set_agent_config("listenPort", json!(51999));
        second.start_agent(&[])?;
        let key = key_of(lab, "n2")?;
        await_peer(lab.node(1)?, &key, "n2's port follows", |peer| peer.endpoint.ends_with(":51999"))?;
        ensure!(
            second.exec("wg", ["show", "wgo0", "listen-port"])?.trim() == "51999",
            "n2 listens elsewhere"
        );
        ping_all(&all)
    })
}

fn key_rotates() -> Result<()> {
    with_agents(2, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let (first, second) = (lab.node(1)?, lab.node(2)?);
        let old = key_of(lab, "n2")?;
        second.stop_agent()?;
        fs::remove_file(second.path("/var/lib/wg-overlay/private-key"))?;
        second.start_agent(&[])?;
        eventually(PATIENCE, "the old key's peer is gone from n1, and another is there", || {
            ensure!(wg_peer(first, &old)?.is_none(), "wg still shows it");
            ensure!(wg_peers(first)? == 1, "{} peers", wg_peers(first)?);
            Ok(())
        })?;
        let new = key_of(lab, "n2")?;
        ensure!(new != old, "the key is the same");
        let device = second.exec("wg", ["show", "wgo0", "public-key"])?;
        ensure!(device.trim() == new, "the device has {device}, published is {new}");
        ping_all(&all)
    })
}

/// n1 sees n2 only by what the Go project would have written; n2 writes those names too.
fn legacy() -> Result<()> {
    let mut config = LabConfig::default();
    config.agent.insert("legacyAnnotations".into(), json!(true));
    config.agent.insert("overlayCIDRs".into(), json!(["100.64.0.0/16"]));
    with_config(config, |lab| {
        let key = key_of(lab, "n2")?;
        let written = |name| lab.api().annotation("n2", name);
        ensure!(written("wireguard-publickey")?.as_ref() == Some(&key), "no key of the Go project's name");
        ensure!(written("wireguard-ip")?.as_deref() == Some("10.244.2.1"), "{:?}", written("wireguard-ip")?);

        let mut original = crate::look::made_up("original", 70);
        let of_70 = crate::look::made_up_key(70);
        original["metadata"]["annotations"] =
            json!({ "wireguard-publickey": of_70, "wireguard-ip": "100.64.0.7" });
        crate::look::create_node(lab, &original)?;
        let first = lab.node(1)?;
        await_peers(first, 2)?;
        let peer = wg_peer(first, &of_70)?.context("the original's peer")?;
        ensure!(peer.endpoint == "172.30.0.70:51820", "{peer:?}");
        ensure!(peer.allowed_ips.contains(&"100.64.0.7/32".to_owned()), "{peer:?}");
        ensure!(routes(first)?.contains("100.64.0.7"), "no route: {}", routes(first)?);

        // An address of that network that somebody holds already is refused to the next.
        let mut second = crate::look::made_up("second", 71);
        second["metadata"]["annotations"] =
            json!({ "wireguard-publickey": crate::look::made_up_key(71), "wireguard-ip": "100.64.0.7" });
        crate::look::create_node(lab, &second)?;
        eventually(PATIENCE, "the second claim to an overlay address is refused", || {
            let shown = shown(first, "second")?;
            ensure!(shown["reason"] == "DuplicateOverlayIp", "{shown}");
            Ok(())
        })?;
        ensure!(metric(first, "wg_overlay_refusals{reason=\"DuplicateOverlayIp\"}")? == 1.0, "no metric");
        Ok(())
    })
}
