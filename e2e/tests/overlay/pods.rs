//! Pods beside other pods and other plugins: many at once, what is left behind, whom a newcomer disturbs.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, pods, status, with_agents, with_config};
use crate::look::{ensure_lossless, probing};
use crate::witness::ping;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("thirty_pods_at_once_get_different_addresses", &["ping"], thirty),
        Case::new("a_pod_whose_namespace_is_gone_is_collected", &[], collected),
        Case::new("portmap_is_chained_where_it_is_installed", &[], portmap),
        Case::new("a_pod_that_comes_and_goes_loses_no_packet_of_another", &[], lossless),
    ]
}

fn thirty() -> Result<()> {
    const PODS: usize = 30;
    with_agents(1, |lab| {
        let node = lab.node(1)?;
        let names: Vec<String> = (0..PODS).map(|number| format!("many{number}")).collect();
        let namespaces: Vec<String> = names.iter().map(|name| format!("netns add {name}")).collect();
        node.namespace().ip(&namespaces)?;
        let all = names.iter().map(|name| call(node, "ADD", name)).collect::<Result<Vec<_>>>()?;
        let mut addresses = std::collections::BTreeSet::new();
        for child in all {
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "ADD: {said}");
            let result: Value = serde_json::from_str(&said)?;
            let ips = result["ips"].as_array().context("no addresses")?;
            addresses.extend(ips.iter().map(|ip| ip["address"].to_string()));
        }
        ensure!(addresses.len() == 2 * PODS, "{} addresses of {PODS} pods: {addresses:?}", addresses.len());
        for name in &names {
            let ping = ["netns", "exec", name, "ping", "-n", "-c1", "-W1", "10.244.1.1"];
            eventually(PATIENCE, &format!("{name} reaches its gateway"), || node.exec("ip", ping))?;
        }
        let all = names.iter().map(|name| call(node, "DEL", name)).collect::<Result<Vec<_>>>()?;
        for child in all {
            ensure!(child.wait_with_output()?.status.success(), "a DEL failed");
        }
        ensure!(status(node)?["pods"][0]["used"] == 0, "addresses leak: {}", status(node)?["pods"]);
        Ok(())
    })
}

/// Starts our plugin as a runtime that runs many at once.
fn call(node: &Node, verb: &str, name: &str) -> Result<Child> {
    let list: Value = serde_json::from_str(&fs::read_to_string(node.path(crate::boot::CONFLIST))?)?;
    let mut config = list["plugins"][0].clone();
    let fields = config.as_object_mut().context("no plugin")?;
    fields.insert("cniVersion".to_owned(), json!("1.0.0"));
    fields.insert("name".to_owned(), list["name"].clone());
    let mut command = node.namespace().command("/opt/cni/bin/wg-overlay-cni");
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("container-{name}"));
    command
        .env("CNI_NETNS", format!("/run/netns/{name}"))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(config.to_string().as_bytes())?;
    Ok(child)
}

fn collected() -> Result<()> {
    let agent = Map::from_iter([("resyncInterval".to_owned(), json!("1s"))]);
    with_config(LabConfig { nodes: 1, agent, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        let (stays, _goes) = (node.add_pod("stays")?, node.add_pod("goes")?);
        let used = || status(node).map(|status| status["pods"][0]["used"].clone());
        ensure!(used()? == 2, "two pods hold {} addresses", used()?);
        node.exec("ip", ["netns", "del", "goes"])?;
        eventually(PATIENCE, "the address of the pod that is gone is free", || {
            ensure!(used()? == 1, "{} are held", used()?);
            Ok(())
        })?;
        stays.check().context("the pod that stays")?;
        eventually(PATIENCE, "the pod reaches its gateway", || ping(&stays, "10.244.1.1"))
    })
}

fn portmap() -> Result<()> {
    Lab::test(LabConfig { nodes: 1, ..LabConfig::default() }, |lab| {
        let node = lab.node(1)?;
        // Stands in for the reference plugin: keeps what it is asked, and passes the result on.
        let script = "#!/bin/bash\nconfig=$(cat)\necho \"$CNI_COMMAND $config\" >> /run/portmap.log\n\
            [ $CNI_COMMAND != ADD ] || sed 's/.*\"prevResult\":\\(.*\\),\"runtimeConfig\".*/\\1/' <<< \"$config\"\n";
        let program = node.path("/opt/cni/bin/portmap");
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        node.start_agent(&[])?;
        await_peers(node, 0)?;
        let cni = status(node)?["cni"].clone();
        ensure!(cni["chained"] == json!(["portmap"]) && cni["missing"] == json!(["bandwidth"]), "{cni}");
        let mappings = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        let pod = node.add_pod_with("p", json!({ "portMappings": mappings }))?;
        ensure!(pod.ips().len() == 2, "the result came through without its addresses");
        let asked = fs::read_to_string(node.path("/run/portmap.log"))?;
        let asked: Value =
            serde_json::from_str(asked.strip_prefix("ADD ").context("portmap was not asked")?)?;
        ensure!(asked["runtimeConfig"]["portMappings"] == mappings, "{asked}");
        ensure!(asked["capabilities"]["portMappings"] == true && asked["snat"] == true, "{asked}");
        ensure!(asked["prevResult"]["ips"][0]["address"].is_string(), "{asked}");
        pod.remove()?;
        let asked = fs::read_to_string(node.path("/run/portmap.log"))?;
        ensure!(asked.lines().any(|line| line.starts_with("DEL ")), "portmap has heard of no DEL");
        Ok(())
    })
}

fn lossless() -> Result<()> {
    with_agents(2, |lab| {
        let node = lab.node(1)?;
        let hardware = || node.exec("cat", ["/sys/class/net/wgobr0/address"]);
        let before = hardware()?;
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        for round in 0..5 {
            let passing: Vec<_> =
                (0..2).map(|n| node.add_pod(&format!("pass{round}{n}"))).collect::<Result<_>>()?;
            passing.into_iter().try_for_each(wg_overlay_e2e::lab::Pod::remove)?;
        }
        ensure!(hardware()? == before, "the bridge's address was {before} and is {}", hardware()?);
        ensure_lossless(&mut prober, "while pods came and went")?;
        // Chosen by us (NET_ADDR_SET 3, include/uapi/linux/netdevice.h): it follows no port.
        let chosen = node.exec("cat", ["/sys/class/net/wgobr0/addr_assign_type"])?;
        ensure!(chosen.trim() == "3", "the bridge's address is of type {chosen}");
        for pod in &all {
            let chosen = pod.exec("ip", ["-j", "link", "show", "dev", "eth0"])?;
            let told = pod.result()["interfaces"].as_array().into_iter().flatten();
            let mut told = told.filter_map(|interface| interface["mac"].as_str());
            ensure!(
                told.any(|mac| chosen.contains(mac)),
                "{pod}: its address is none of its result's: {chosen}"
            );
        }
        Ok(())
    })
}
