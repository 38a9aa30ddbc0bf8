//! Each bad input, by name: what `status`, the log, the metric and an Event say of it, and that it is over when it
//! is corrected.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::Case;

use super::await_event;
use crate::cluster::{PATIENCE, pods, with_config};
use crate::look::{
    ENDPOINT, KEY, OVERLAY_IPS, await_peer, await_rounds, create_node, ensure_lossless, ensure_ready, key_of,
    made_up, made_up_key, probing, routes, shown, wg_overlay, wg_peer,
};

/// The Node that goes wrong, and its number.
const BAD: (&str, u8) = ("bad", 9);
const PORT: &str = "wg-overlay.io/listen-port";
const MTU: &str = "wg-overlay.io/mtu";
const KEEPALIVE: &str = "wg-overlay.io/persistent-keepalive";

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("bad_annotations_are_refused_by_name", needs, bad_annotations),
        Case::new("bad_nodes_are_refused_by_name", needs, bad_nodes),
    ]
}

fn bad_annotations() -> Result<()> {
    let long = "1".repeat(10_000);
    // A point of order 8 (https://cr.yp.to/ecdh.html), and all zeros.
    let low_order = "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=";
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let malformed = [
        (KEY, "", "MalformedKey"),
        (KEY, "c2hvcnQ=", "MalformedKey"),
        (KEY, "this is not base64, though of 44 characters!", "MalformedKey"),
        (KEY, zero, "MalformedKey"),
        (KEY, low_order, "MalformedKey"),
        (KEY, &long, "MalformedAnnotation"),
        (OVERLAY_IPS, "", "MalformedAnnotation"),
        (OVERLAY_IPS, "10.244.9.1,", "MalformedAnnotation"),
        (OVERLAY_IPS, "::ffff:10.244.9.1", "MalformedAnnotation"),
        (OVERLAY_IPS, "127.0.0.1", "MalformedAnnotation"),
        (OVERLAY_IPS, &long, "MalformedAnnotation"),
        (PORT, "0", "MalformedAnnotation"),
        (PORT, "65536", "MalformedAnnotation"),
        (PORT, "many", "MalformedAnnotation"),
        (MTU, "575", "MalformedAnnotation"),
        (KEEPALIVE, "-1", "MalformedAnnotation"),
        (ENDPOINT, "", "MalformedAnnotation"),
        (ENDPOINT, "224.0.0.9:51820", "MalformedAnnotation"),
        (ENDPOINT, "[ff02::9]:51820", "MalformedAnnotation"),
        (ENDPOINT, "127.0.0.1:51820", "MalformedAnnotation"),
        (ENDPOINT, "169.254.9.9:51820", "MalformedAnnotation"),
        (ENDPOINT, "[fe80::9]:51820", "MalformedAnnotation"),
        (ENDPOINT, "[::ffff:172.30.0.9]:51820", "MalformedAnnotation"),
        (ENDPOINT, "172.30.0.9:0", "MalformedAnnotation"),
        (ENDPOINT, &long, "MalformedAnnotation"),
    ];
    let wrong = [
        (OVERLAY_IPS, "192.0.2.9", "OverlayIpOutside", "192.0.2.9"),
        (OVERLAY_IPS, "10.244.2.1", "OverlayIpOutside", "10.244.2.1"),
        (ENDPOINT, "10.244.1.7:51820", "EndpointInTunnel", "10.244.1.7"),
        (ENDPOINT, "[fd00:244:0:2::7]:51820", "EndpointInTunnel", "fd00:244:0:2::7"),
        (ENDPOINT, "172.30.0.11:51820", "EndpointIsOwn", "172.30.0.11"),
    ];
    refusing(|lab, watched| {
        let named = malformed.into_iter().map(|(name, text, reason)| (name, text, reason, name));
        for (name, text, reason, named) in named.chain(wrong) {
            let annotated = json!({ "metadata": { "annotations": { (name): text } } });
            watched.refused(lab, &annotated, reason, named)?;
        }
        // A key is the one thing that both sides of a copy see differently.
        let own = key_of(lab, "n1")?;
        let copied = json!({ "metadata": { "annotations": { (KEY): own } } });
        watched.refused(lab, &copied, "OwnKey", "this node's own")
    })
}

fn bad_nodes() -> Result<()> {
    let none = json!({ (OVERLAY_IPS): null });
    let cidrs = |nets: &[&str]| json!({ "spec": { "podCIDRs": nets }, "metadata": { "annotations": none } });
    let addresses = |ips: &[&str]| {
        let list: Vec<Value> = ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
        json!({ "status": { "addresses": list } })
    };
    refusing(|lab, watched| {
        // A subnet of n1's own.
        let node = lab.node(1)?.namespace();
        node.ip(&[
            "link add spare type bridge".into(),
            "addr add 10.244.78.1/24 dev spare".into(),
            "link set spare up".into(),
        ])?;
        let table = [
            (cidrs(&["10.244.300.0/24"]), "MalformedPodCidr", "300"),
            (cidrs(&["x"]), "MalformedPodCidr", "x"),
            (cidrs(&["192.168.9.0/24"]), "PodCidrOutside", "192.168.9.0/24"),
            (cidrs(&["0.0.0.0/0"]), "PodCidrOutside", "0.0.0.0/0"),
            (cidrs(&["::/0"]), "PodCidrOutside", "::/0"),
            (cidrs(&["10.244.0.0/16"]), "PodCidrTooWide", "10.244.0.0/16"),
            (cidrs(&["10.244.9.0/24", "10.244.9.128/25"]), "PodCidrOverlaps", "10.244.9.128/25"),
            (cidrs(&["10.244.78.0/24"]), "PodCidrOverlaps", "spare"),
            (cidrs(&["10.244.1.0/24"]), "DuplicatePodCidr", "n1"),
            (cidrs(&["10.244.2.0/24"]), "DuplicatePodCidr", "n2"),
            (cidrs(&["10.244.2.128/25"]), "DuplicatePodCidr", "n2"),
            (addresses(&[]), "NoEndpoint", "InternalIP"),
            (addresses(&["nonsense"]), "NoEndpoint", "InternalIP"),
            (addresses(&["127.0.0.1", "fe80::9"]), "NoEndpoint", "InternalIP"),
            (addresses(&["10.244.9.9"]), "EndpointInTunnel", "10.244.9.9"),
            (addresses(&["172.30.0.11"]), "EndpointIsOwn", "172.30.0.11"),
        ];
        for (patch, reason, named) in table {
            watched.refused(lab, &patch, reason, named)?;
        }
        watched.takes_no_part(lab, &cidrs(&[]), "NoPodCidr")?;
        watched.takes_no_part(lab, &json!({ "metadata": { "annotations": { (KEY): null } } }), "NoPublicKey")
    })
}

/// Two nodes with pods that talk, and a third that is made up and good.
fn refusing(body: impl FnOnce(&Lab, &mut Watched) -> Result<()>) -> Result<()> {
    let mut config = LabConfig::default();
    // Told once, and not at each resync.
    config.agent.insert("resyncInterval".into(), json!("1s"));
    with_config(config, |lab| {
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        create_node(lab, &made_up(BAD.0, BAD.1))?;
        let mut watched = Watched { log_lines: 0 };
        watched.good(lab)?;
        body(lab, &mut watched)?;
        let first = lab.node(1)?;
        await_rounds(first)?;
        let lines = refused_lines(first);
        ensure!(
            lines.len() == watched.log_lines,
            "{} lines of {}: {lines:#?}",
            lines.len(),
            watched.log_lines
        );
        ensure_lossless(&mut prober, "a third node says wrong things")
    })
}

struct Watched {
    /// How many refusals n1 is to have logged.
    log_lines: usize,
}

impl Watched {
    /// The change makes the Node refused for this reason, in words that name the fault; its correction ends that.
    fn refused(&mut self, lab: &Lab, patch: &Value, reason: &str, named: &str) -> Result<()> {
        let what = format!("{reason} for {:.120}", patch.to_string());
        self.log_lines += 1;
        change(lab, patch)?;
        let first = lab.node(1)?;
        eventually(PATIENCE, &what, || {
            let shown = shown(first, BAD.0)?;
            ensure!(shown["state"] == "Refused" && shown["reason"] == reason, "{shown}");
            let note = shown["note"].as_str().context("no note")?;
            ensure!(note.contains(named) && note.len() < 300, "the note does not name {named}: {note}");
            Ok(())
        })
        .with_context(|| what.clone())?;
        nothing_programmed(first).with_context(|| what.clone())?;
        ensure!(wg_overlay(first, &["status"])?.code == Some(1), "{what}: status exits otherwise than 1");
        await_event(lab, first, BAD.0, reason).with_context(|| what.clone())?;
        let lines = refused_lines(first);
        let last = lines.last().map(String::as_str).unwrap_or_default();
        ensure!(last.contains(reason), "{what}: the log's last refusal is {last}");
        self.others_go_on(lab).with_context(|| what.clone())?;
        self.good(lab).with_context(|| format!("after {what}"))
    }

    /// The change makes the Node one that takes no part, which is nobody's fault.
    fn takes_no_part(&mut self, lab: &Lab, patch: &Value, reason: &str) -> Result<()> {
        change(lab, patch)?;
        let first = lab.node(1)?;
        eventually(PATIENCE, reason, || {
            let shown = shown(first, BAD.0)?;
            ensure!(shown["state"] == "NoAgent" && shown["reason"] == reason, "{shown}");
            Ok(())
        })?;
        nothing_programmed(first)?;
        ensure!(wg_overlay(first, &["status"])?.code == Some(0), "status is not converged");
        self.others_go_on(lab)?;
        self.good(lab)
    }

    fn others_go_on(&self, lab: &Lab) -> Result<()> {
        for (on, other) in [(lab.node(1)?, "n2"), (lab.node(2)?, "n1")] {
            ensure_ready(on)?;
            await_peer(on, &key_of(lab, other)?, "the other's peer stays", |peer| {
                peer.allowed_ips.len() == 2
            })?;
        }
        Ok(())
    }

    /// The Node is as it should be, and believed.
    fn good(&self, lab: &Lab) -> Result<()> {
        let mut good = made_up(BAD.0, BAD.1);
        for name in [ENDPOINT, MTU, KEEPALIVE] {
            good["metadata"]["annotations"][name] = Value::Null;
        }
        change(lab, &good)?;
        let nets = ["10.244.9.0/24", "fd00:244:0:9::/64"];
        for node in [lab.node(1)?, lab.node(2)?] {
            await_peer(node, &made_up_key(BAD.1), "the good Node is believed", |peer| {
                peer.allowed_ips == nets
            })?;
        }
        Ok(())
    }
}

fn change(lab: &Lab, patch: &Value) -> Result<()> {
    lab.api().patch_node(BAD.0, patch)?;
    lab.api().patch_status(BAD.0, patch).map(drop)
}

fn nothing_programmed(node: &Node) -> Result<()> {
    ensure!(wg_peer(node, &made_up_key(BAD.1))?.is_none(), "wg shows its peer");
    let routes = routes(node)?;
    ensure!(!routes.contains("10.244.9.") && !routes.contains("fd00:244:0:9:"), "{routes}");
    Ok(())
}

fn refused_lines(node: &Node) -> Vec<String> {
    let log = node.agent_log();
    log.lines().filter(|line| line.contains("\"refused: ")).map(str::to_owned).collect()
}
