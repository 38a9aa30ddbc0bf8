//! What the commands say, to a person and by their exit status.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{LabConfig, Node, eventually, product};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, with_agents, with_config};
use crate::look::{create_node, http, made_up, plan, routes, wg_overlay};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("configuration_errors_are_told_all_at_once", needs, configuration),
        Case::new("status_exits_0_1_and_2", needs, status_codes),
        Case::new("plan_tells_the_difference_and_changes_nothing", needs, plan_changes_nothing),
        Case::new("no_output_holds_the_private_key", needs, secrets),
    ]
}

fn configuration() -> Result<()> {
    wg_overlay_e2e::lab::Lab::test(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        let help = wg_overlay(node, &["--help"])?;
        ensure!(help.code == Some(0), "--help exits {:?}", help.code);
        for command in ["agent", "device", "status", "doctor", "plan", "cleanup", "version"] {
            ensure!(help.out.contains(command), "--help does not name {command}: {}", help.out);
        }
        let version = wg_overlay(node, &["version"])?;
        ensure!(version.code == Some(0) && version.out.starts_with("wg-overlay "), "{}", version.out);

        let text = "nodename: n1\nlistenPort: 70000\nmtu: tiny\npodCIDRs: [10.0.0.0/33]\nfailClosed: perhaps\nresyncInterval: 5\n";
        fs::write(node.path("/etc/wg-overlay/bad.yaml"), text)?;
        let wrong: [&[&str]; 3] = [
            &["agent", "--config", "/etc/wg-overlay/bad.yaml", "--metrics-address", "nowhere"],
            &["agent", "--config", "/etc/wg-overlay/missing.yaml"],
            &["plan", "--config", "/etc/wg-overlay/bad.yaml", "--no-such-flag", "1"],
        ];
        let named: [&[&str]; 3] = [
            &[
                "nodename",
                "nodeName",
                "listenPort",
                "70000",
                "mtu",
                "tiny",
                "podCIDRs",
                "10.0.0.0/33",
                "failClosed",
                "resyncInterval",
                "metricsAddress",
                "--metrics-address",
                "bad.yaml",
                "legacyAnnotations",
            ],
            &["missing.yaml"],
            &["no-such-flag"],
        ];
        for (arguments, parts) in wrong.into_iter().zip(named) {
            let said = wg_overlay(node, arguments)?;
            ensure!(said.code.is_some_and(|code| code != 0), "{arguments:?} exits {:?}", said.code);
            for part in parts {
                ensure!(said.err.contains(part), "{part} is not in:\n{}", said.err);
            }
        }
        ensure!(!node.path("/run/wg-overlay").exists(), "a wrong configuration has done something");
        Ok(())
    })
}

fn status_codes() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let said = |code: i32, args: &[&str]| {
            let said = wg_overlay(node, args)?;
            ensure!(
                said.code == Some(code),
                "{args:?} exits {:?}, not {code}: {}{}",
                said.code,
                said.out,
                said.err
            );
            Ok::<_, anyhow::Error>(said)
        };
        eventually(PATIENCE, "n1 is converged", || said(0, &["status"]).map(drop))?;
        let text = said(0, &["status"])?.out;
        for part in
            ["Node    n1   Converged", "Device  wgo0", "Pods    10.244.1.0/24", "Guard   fail closed", "n2  "]
        {
            ensure!(text.contains(part), "{part} is not in:\n{text}");
        }
        let mut wrong = made_up("wrong", 90);
        wrong["spec"]["podCIDRs"] = json!(["192.168.0.0/24"]);
        create_node(lab, &wrong)?;
        eventually(PATIENCE, "n1 is degraded", || said(1, &["status", "--output", "json"]).map(drop))?;
        let text = said(1, &["status"])?.out;
        ensure!(text.contains("Degraded: 1 refused") && text.contains("PodCidrOutside"), "{text}");
        node.kill_agent()?;
        let said = said(2, &["status"])?;
        ensure!(said.out.is_empty() && said.err.contains("is it running"), "{}{}", said.out, said.err);
        Ok(())
    })
}

fn plan_changes_nothing() -> Result<()> {
    with_config(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        lab.add_node(Default::default())?;
        let (first, fresh) = (lab.node(1)?, lab.node(2)?);
        fs::write(
            fresh.path("/etc/wg-overlay/config.yaml"),
            json!({ "nodeName": "n2", "podCIDRs": wg_overlay_e2e::lab::POD_CIDRS }).to_string(),
        )?;
        let before = everything(fresh)?;
        let text = plan(fresh)?;
        for step in [
            "set nftables table inet wg-overlay",
            "add unreachable route 10.244.0.0/16",
            "create link wgo0",
            "create link wgobr0",
            "add address 10.244.2.1/32 to wgo0",
            "add peer n1",
            "route 10.244.1.0/24 into wgo0",
        ] {
            ensure!(text.contains(step), "{step} is not in:\n{text}");
        }
        ensure_unchanged(fresh, &before)?;
        for path in ["/run/wg-overlay", "/var/lib/wg-overlay/private-key"] {
            ensure!(!fresh.path(path).exists(), "plan made {path}");
        }
        ensure!(lab.api().annotation("n2", crate::look::KEY)?.is_none(), "plan published a key");

        fresh.start_agent(&[])?;
        await_peers(first, 1)?;
        await_peers(fresh, 1)?;
        ensure!(plan(first)?.contains("as it should be"), "{}", plan(first)?);
        first.stop_agent()?;
        first.exec("ip", ["route", "del", "10.244.2.0/24"])?;
        first.exec("nft", ["delete", "table", "inet", "wg-overlay"])?;
        eventually(PATIENCE, "the kernel notices that the bridge has no port", || {
            let link = first.exec("ip", ["-o", "link", "show", "wgobr0"])?;
            ensure!(link.contains("NO-CARRIER"), "{link}");
            Ok(())
        })?;
        let before = everything(first)?;
        let text = plan(first)?;
        ensure!(
            text.contains("route 10.244.2.0/24 into wgo0") && text.contains("set nftables table"),
            "{text}"
        );
        let json: Value = serde_json::from_str(&first.wg_overlay(&[
            "plan",
            "--config",
            "/etc/wg-overlay/config.yaml",
            "--output",
            "json",
        ])?)?;
        ensure!(json["steps"].as_array().is_some_and(|steps| steps.len() == text.lines().count()), "{json}");
        ensure!(!routes(first)?.contains("10.244.2.0/24"), "plan has put the route back");
        ensure_unchanged(first, &before)
    })
}

/// Links, addresses, routes, rules and the firewall, without what counts and without link-local addresses, which the
/// kernel makes and checks in its own time.
fn everything(node: &Node) -> Result<BTreeSet<String>> {
    let listings: [&[&str]; 6] = [
        &["ip", "-o", "link"],
        &["ip", "-o", "addr"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["nft", "-s", "list", "ruleset"],
    ];
    let mut lines = BTreeSet::new();
    for words in listings {
        let (program, arguments) = words.split_first().context("no program")?;
        let text = node.exec(program, arguments)?;
        let own = text.lines().filter(|line| !line.contains("fe80:") && !line.contains("multicast ff00::"));
        lines.extend(own.map(str::to_owned));
    }
    Ok(lines)
}

fn ensure_unchanged(node: &Node, before: &BTreeSet<String>) -> Result<()> {
    let after = everything(node)?;
    let differs: Vec<&String> = before.symmetric_difference(&after).collect();
    ensure!(differs.is_empty(), "plan changed the kernel: {differs:#?}");
    Ok(())
}

/// Every text that the product gives out, at the most talkative level.
fn secrets() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        node.stop_agent()?;
        let mut talkative = node.namespace().command(product("wg-overlay")?);
        talkative.args(["agent", "--config", "/etc/wg-overlay/config.yaml"]);
        talkative.env("KUBECONFIG", "/etc/wg-overlay/kubeconfig").env("RUST_LOG", "trace");
        node.exec("ip", ["link", "del", "wgo0"])?;
        node.namespace().spawn(&mut talkative, &node.log("talkative"))?;
        await_peers(node, 1)?;
        ping_all(&pods(lab)?)?;

        let mut keys = Vec::new();
        for node in lab.nodes() {
            let file = fs::read_to_string(node.path("/var/lib/wg-overlay/private-key"))?;
            let key = file
                .lines()
                .find_map(|line| line.strip_prefix("private-key "))
                .context("no key in the file")?;
            let device = node.exec("wg", ["show", "wgo0", "private-key"])?;
            ensure!(device.trim() == key, "the device has another key than the file");
            let bytes = BASE64_STANDARD.decode(key)?;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let list = format!("{bytes:?}");
            keys.extend([key.to_owned(), hex.to_uppercase(), hex, list.trim_matches(['[', ']']).to_owned()]);
        }
        let mut texts = vec![("Nodes".to_owned(), lab.api().get("/api/v1/nodes")?.to_string())];
        texts.push(("Events".to_owned(), json!(lab.api().events()?).to_string()));
        for arguments in [&["status"][..], &["status", "--output", "json"]] {
            texts.push((arguments.join(" "), wg_overlay(node, arguments)?.out));
        }
        for output in ["text", "json"] {
            let said =
                wg_overlay(node, &["plan", "--config", "/etc/wg-overlay/config.yaml", "--output", output])?;
            texts.push((format!("plan {output}"), said.out + &said.err));
        }
        texts.push(("metrics".to_owned(), http(node, 9820, "/metrics")?));
        let mut files: Vec<_> =
            fs::read_dir(lab.folder().join("logs"))?.flatten().map(|entry| entry.path()).collect();
        // The plugin writes a log only when it has failed.
        files.extend(Some(node.path("/run/wg-overlay/cni.log")).filter(|path| path.exists()));
        files.push(node.path("/etc/cni/net.d/10-wg-overlay.conflist"));
        for path in files {
            texts.push((path.display().to_string(), String::from_utf8_lossy(&fs::read(&path)?).into_owned()));
        }
        let talks =
            |(name, text): &(String, String)| name.contains("talkative") && text.contains("\"TRACE\"");
        ensure!(texts.iter().any(talks), "the agent's log is not at its most talkative level");
        for (name, text) in &texts {
            ensure!(!keys.iter().any(|key| text.contains(key.as_str())), "{name} holds a private key");
        }
        Ok(())
    })
}
