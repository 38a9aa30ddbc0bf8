//! What a node tells the cluster: that its network is up, by which the scheduler lets pods come, and that NetworkPolicies
//! are not enforced.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, NodeConfig, eventually};
use wg_overlay_e2e::suite::Case;

use crate::boot::CONFLIST;
use crate::cluster::{PATIENCE, await_peers, status};
use crate::look::{await_rounds, wg_overlay};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("the_node_says_that_its_network_is_up_once_it_is", &["bash"], up),
        Case::new("network_policies_are_said_not_to_be_enforced", &["bash"], policies),
    ]
}

const KIND: &str = "NetworkUnavailable";

fn conditions(lab: &Lab) -> Result<Vec<Value>> {
    Ok(lab.api().node("n1")?["status"]["conditions"].as_array().cloned().unwrap_or_default())
}

fn network(lab: &Lab) -> Result<Option<(String, String)>> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = conditions(lab)?.into_iter().find(|condition| condition["type"] == KIND);
    Ok(found.map(|condition| (word(&condition["status"]), word(&condition["reason"]))))
}

fn await_ours(lab: &Lab) -> Result<()> {
    let ours = Some(("False".to_owned(), "WgOverlayIsUp".to_owned()));
    eventually(PATIENCE, "the network of n1 is said to be up", || {
        let found = network(lab)?;
        ensure!(found == ours, "{found:?}");
        Ok(())
    })
}

/// What a controller writes: the whole list, as it stands.
fn say(lab: &Lab, status: &str, reason: &str) -> Result<()> {
    let mut all = conditions(lab)?;
    all.retain(|condition| condition["type"] != KIND);
    all.push(json!({ "type": KIND, "status": status, "reason": reason }));
    lab.api().patch_status("n1", &json!({ "status": { "conditions": all } })).map(drop)
}

/// Resyncs each second, so that what one would say is heard soon.
fn quick(nodes: u8) -> LabConfig {
    let mut config = LabConfig { nodes, ..LabConfig::default() };
    config.agent.insert("resyncInterval".into(), json!("1s"));
    config
}

fn up() -> Result<()> {
    Lab::test(quick(0), |lab| {
        lab.add_node(NodeConfig::default())?;
        let node = lab.node(1)?;
        let ready = json!({ "type": "Ready", "status": "False", "reason": "KubeletNotReady" });
        lab.api().patch_status("n1", &json!({ "status": { "conditions": [ready] } }))?;
        say(lab, "True", "NoRouteCreated")?;
        // The conflist can't be written: annotations are published, and no more.
        node.exec("bash", ["-euc", "rmdir /etc/cni/net.d; touch /etc/cni/net.d"])?;
        node.start_agent(&[])?;
        eventually(PATIENCE, "n1 has published its key", || {
            ensure!(lab.api().annotation("n1", crate::look::KEY)?.is_some(), "not yet");
            Ok(())
        })?;
        await_rounds(node)?;
        ensure!(network(lab)?.is_some_and(|(status, _)| status == "True"), "up before the conflist");
        node.exec("bash", ["-euc", "rm /etc/cni/net.d; mkdir -p /etc/cni/net.d"])?;
        await_ours(lab)?;
        ensure!(node.path(CONFLIST).exists(), "up before the conflist");
        ensure!(conditions(lab)?.contains(&ready), "another condition is gone: {:?}", conditions(lab)?);

        // Another controller's True is set right, its False is its own.
        say(lab, "True", "NoRouteCreated")?;
        await_ours(lab)?;
        lab.api().clear_requests()?;
        say(lab, "False", "RouteCreated")?;
        await_rounds(node)?;
        await_peers(node, 0)?;
        let writes: Vec<Value> =
            lab.api().requests()?.into_iter().filter(|r| r["method"] == "PATCH").collect();
        ensure!(writes.is_empty(), "a False is written over: {writes:?}");
        node.stop_agent()?;
        ensure!(status(node).is_err(), "the agent still answers");
        let said = wg_overlay(node, &["cleanup", "--config", "/etc/wg-overlay/config.yaml"])?;
        ensure!(said.code == Some(0), "cleanup: {}{}", said.out, said.err);
        let kept = Some(("False".to_owned(), "RouteCreated".to_owned()));
        ensure!(network(lab)? == kept, "another's condition is gone: {:?}", network(lab)?);

        // Ours goes, and nothing else does.
        say(lab, "Unknown", "NodeStatusUnknown")?;
        node.start_agent(&[])?;
        await_ours(lab)?;
        node.stop_agent()?;
        let said = wg_overlay(node, &["cleanup", "--config", "/etc/wg-overlay/config.yaml"])?;
        ensure!(said.code == Some(0), "cleanup: {}{}", said.out, said.err);
        ensure!(conditions(lab)? == [ready], "not as before: {:?}", conditions(lab)?);
        Ok(())
    })
}

fn policies() -> Result<()> {
    const REASON: &str = "NetworkPolicyNotEnforced";
    Lab::test(quick(1), |lab| {
        let node = lab.node(1)?;
        let told = || {
            let events = lab.api().events()?;
            Ok::<_, anyhow::Error>(events.iter().filter(|event| event["reason"] == REASON).count())
        };
        // Where the agent may not look, nobody hears of anything.
        let policies = "/apis/networking.k8s.io/v1/networkpolicies";
        let policy = json!({ "metadata": { "name": "deny" }, "spec": { "podSelector": {} } });
        lab.api().create("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", &policy)?;
        lab.api().set_faults(&json!({ "fail": { "count": 1, "status": 403, "path": policies } }))?;
        node.start_agent(&[])?;
        await_peers(node, 0)?;
        eventually(PATIENCE, "the agent was refused", || {
            ensure!(lab.api().set_faults(&json!({}))?["failuresLeft"] == 0, "not yet");
            Ok(())
        })?;
        await_rounds(node)?;
        let quiet = status(node)?;
        ensure!(quiet["notes"] == json!([]) && told()? == 0, "{} {}", quiet["notes"], told()?);
        ensure!(!node.agent_log().contains("olicies"), "the log tells of it");

        node.stop_agent()?;
        node.start_agent(&[])?;
        eventually(PATIENCE, "status and Event tell of it", || {
            let status = status(node)?;
            ensure!(status["notes"].to_string().contains("not enforced"), "{}", status["notes"]);
            ensure!(told()? == 1, "{} Events", told()?);
            Ok(())
        })?;
        await_peers(node, 0)?;
        let said = wg_overlay(node, &["status"])?;
        ensure!(said.out.contains("NetworkPolicies exist and are not enforced"), "{}", said.out);
        let problems = status(node)?["problems"].clone();
        ensure!(!problems.to_string().contains("olicies"), "it counts as a problem: {problems}");
        Ok(())
    })
}
