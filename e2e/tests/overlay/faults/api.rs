//! The API server fails in each way it can: no packet is lost, no peer removed, and what changes afterwards arrives.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wg_overlay_e2e::lab::{Lab, LabConfig, Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, await_peers, ping_all, pods, status, with_agents, with_config};
use crate::look::{
    await_rounds, create_node, ensure_lossless, ensure_ready, key_of, made_up, made_up_key, probing, wg_peer,
    wg_peers,
};

pub fn cases() -> Vec<Case> {
    let needs = &["ping", "wg", "bash"];
    vec![
        Case::new("api_answers_slowly", needs, || {
            fails(&json!({ "delayMillis": 3000, "cutWatches": true }), asked)
        }),
        Case::new("api_answers_500", needs, || fails(&failing(500), failed)),
        Case::new("api_answers_429", needs, || fails(&failing(429), failed)),
        Case::new("api_answers_410", needs, || fails(&failing(410), failed)),
        Case::new("api_has_forgotten_the_history", needs, || {
            fails(&json!({ "compact": true, "cutWatches": true }), asked)
        }),
        Case::new("api_cuts_a_watch_within_a_line", needs, || fails(&json!({ "cutWatches": true }), asked)),
        Case::new("api_has_no_streaming_lists", needs, || {
            fails(&json!({ "streamingLists": false, "compact": true, "cutWatches": true }), listed)
        }),
        Case::new("api_gives_an_empty_list", needs, || bad_lists("emptyLists", false)),
        Case::new("api_streams_an_empty_list", needs, || bad_lists("emptyLists", true)),
        Case::new("api_cuts_a_list_half_way", needs, || bad_lists("cutLists", false)),
        Case::new("api_server_lags_behind_another", needs, lags),
        Case::new("api_watches_are_silent", needs, silent),
        Case::new("api_is_gone_when_an_agent_starts", needs, gone_at_start),
        Case::new("an_agents_own_node_is_deleted_for_a_while", needs, own_node_deleted),
    ]
}

fn failing(status: u16) -> Value {
    json!({ "fail": { "count": 100_000, "status": status, "path": "/api/v1/nodes" }, "cutWatches": true })
}

fn failed(lab: &Lab) -> Result<()> {
    ensure!(lab.api().set_faults(&json!({}))?["failuresLeft"] != 100_000, "no request has failed");
    Ok(())
}

/// Somebody has asked for Nodes since.
fn asked(lab: &Lab) -> Result<()> {
    let of_nodes = |r: &Value| r["uri"].as_str().is_some_and(|uri| uri.starts_with("/api/v1/nodes"));
    ensure!(lab.api().requests()?.iter().any(of_nodes), "nobody has asked for Nodes");
    Ok(())
}

fn listed(lab: &Lab) -> Result<()> {
    let list = |uri: &str| uri.starts_with("/api/v1/nodes?") && !uri.contains("watch=");
    let requests = lab.api().requests()?;
    ensure!(
        requests.iter().any(|r| r["uri"].as_str().is_some_and(list)),
        "nobody has listed Nodes: {requests:?}"
    );
    Ok(())
}

/// Each of the next lists is wrong in the one way.
fn bad_lists(how: &str, streaming: bool) -> Result<()> {
    let fault = json!({ (how): 1000, "streamingLists": streaming, "compact": true, "cutWatches": true });
    fails(&fault, |lab| {
        ensure!(lab.api().set_faults(&json!({}))?[how] != 1000, "no list was asked for");
        Ok(())
    })
}

/// `met` proves that the agents have met the fault.
fn fails(fault: &Value, met: impl Fn(&Lab) -> Result<()>) -> Result<()> {
    with_resyncs(|lab| {
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        lab.api().clear_requests()?;
        lab.api().set_faults(fault)?;
        eventually(PATIENCE, "the agents meet the fault", || met(lab))?;
        nothing_is_lost(lab)?;
        ensure_lossless(&mut prober, "the fault")?;
        lab.api().clear_faults()?;
        changes_arrive(lab)?;
        ensure_lossless(&mut prober, "its end")
    })
}

fn with_resyncs(body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let mut config = LabConfig::default();
    config.agent.insert("resyncInterval".into(), json!("1s"));
    with_config(config, |lab| body(lab))
}

/// Resyncs come and heartbeats of the nodes themselves, and every peer stays.
fn nothing_is_lost(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        await_rounds(node)?;
        let beat = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        lab.api().patch_status(node.name(), &beat)?;
        lab.api().annotate(node.name(), &json!({ "wg-overlay.io/persistent-keepalive": "0" }))?;
        await_rounds(node)?;
        ensure!(wg_peers(node)? == lab.nodes().len() - 1, "{} has {} peers", node.name(), wg_peers(node)?);
        ensure_ready(node)?;
    }
    Ok(())
}

pub fn changes_arrive(lab: &Lab) -> Result<()> {
    let peers = lab.nodes().len() - 1;
    create_node(lab, &made_up("afterwards", 90))?;
    for node in lab.nodes() {
        await_peers(node, peers + 1)?;
    }
    lab.api().delete_node("afterwards")?;
    lab.nodes().iter().try_for_each(|node| await_peers(node, peers))
}

/// A connection is led to another API server, which doesn't know of the last Node that joined. In the end it is believed:
/// etcd may have been restored from a backup.
fn lags() -> Result<()> {
    with_resyncs(|lab| {
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        lab.api().set_faults(&json!({ "lag": true }))?;
        create_node(lab, &made_up("later", 92))?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 2))?;
        lab.api().set_faults(&json!({ "compact": true, "cutWatches": true }))?;
        let lists = || Ok::<_, anyhow::Error>(lab.api().set_faults(&json!({}))?["laggingLists"].as_u64());
        eventually(PATIENCE, "the agents ask the server that lags", || {
            let lists = lists()?;
            ensure!(lists > Some(4), "{lists:?} lists");
            Ok(())
        })?;
        for node in lab.nodes() {
            ensure!(wg_peer(node, &made_up_key(92))?.is_some(), "{} has lost who joined", node.name());
        }
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1)).context("it is believed in the end")?;
        let believed = lists()?;
        ensure!(believed >= Some(20), "two agents believed after {believed:?} lists");
        lab.api().clear_faults()?;
        lab.api().set_faults(&json!({ "cutWatches": true }))?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 2))?;
        lab.api().delete_node("later")?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1))?;
        changes_arrive(lab)?;
        ensure_lossless(&mut prober, "a server that lags")
    })
}

fn silent() -> Result<()> {
    with_resyncs(|lab| {
        let all = pods(lab)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        lab.api().set_faults(&json!({ "silent": true }))?;
        create_node(lab, &made_up("unheard", 91))?;
        nothing_is_lost(lab)?;
        for node in lab.nodes() {
            ensure!(wg_peer(node, &made_up_key(91))?.is_none(), "the watch is not silent");
        }
        ensure_lossless(&mut prober, "silence")?;
        lab.api().clear_faults()?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 2))?;
        lab.api().delete_node("unheard")?;
        lab.nodes().iter().try_for_each(|node| await_peers(node, 1))?;
        changes_arrive(lab)
    })
}

fn gone_at_start() -> Result<()> {
    with_resyncs(|lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let mut prober = probing(lab, &all.iter().collect::<Vec<_>>())?;
        let first = lab.node(1)?;
        for verdict in ["reject with tcp reset", "drop"] {
            first.kill_agent()?;
            let rule = format!(
                "add table inet e2e; add chain inet e2e out {{ type filter hook output priority -300; }}; add rule inet e2e out tcp dport 6443 {verdict}"
            );
            first.exec("nft", [&rule])?;
            first.start_agent(&[])?;
            let waits = |node: &Node| {
                let status = status(node)?;
                ensure!(status["state"] == "WaitingForNodes", "{}", status["state"]);
                Ok(())
            };
            eventually(PATIENCE, "the agent says what it waits for", || waits(first))?;
            await_rounds(first)?;
            waits(first)?;
            ensure!(wg_peers(first)? == 1, "{} peers", wg_peers(first)?);
            ensure_lossless(&mut prober, "an agent without API")?;
            first.exec("nft", ["delete table inet e2e"])?;
            changes_arrive(lab).with_context(|| format!("after {verdict}"))?;
            ensure_ready(first)?;
        }
        ensure_lossless(&mut prober, "the API is back")
    })
}

fn own_node_deleted() -> Result<()> {
    with_agents(3, |lab| {
        let all = pods(lab)?;
        ping_all(&all)?;
        let [_, two, three] = all.as_slice() else { anyhow::bail!("not three pods") };
        let mut prober = probing(lab, &[two, three])?;
        let (first, key) = (lab.node(1)?, key_of(lab, "n1")?);
        lab.api().delete_node("n1")?;
        eventually(PATIENCE, "n1 says that its Node is gone", || {
            let status = status(first)?;
            ensure!(status["state"] == "Degraded", "{}", status["state"]);
            ensure!(
                status["problems"].to_string().contains("Node n1 is not in the cluster"),
                "{}",
                status["problems"]
            );
            Ok(())
        })?;
        ensure!(wg_peers(first)? == 2, "n1 has {} peers left", wg_peers(first)?);
        for node in [lab.node(2)?, lab.node(3)?] {
            await_peers(node, 1)?;
        }
        create_node(lab, &first.object())?;
        for node in lab.nodes() {
            await_peers(node, 2)?;
        }
        ensure!(key_of(lab, "n1")? == key, "n1 has another key");
        let status = status(first)?;
        ensure!(status["problems"] == json!([]), "{}", status["problems"]);
        ping_all(&all)?;
        ensure_lossless(&mut prober, "another Node is deleted and comes back")
    })
}
