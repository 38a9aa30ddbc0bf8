//! The agent's client, unchanged.

use axum::body::Body;
use axum::http::Request;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tower::ServiceExt as _;
use wg_overlay_e2e::api::NodeApi;

use super::{add_nodes, fault, server};

/// It has this server as its transport.
fn client(api: &NodeApi) -> kube::Client {
    let service = api.router().map_request(|request: Request<kube::client::Body>| request.map(Body::new));
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn kube_lists_watches_and_patches() {
    let api = server();
    add_nodes(&api, 0..7).await;
    let nodes: Api<Node> = Api::all(client(&api));
    for (round, config) in
        [watcher::Config::default().page_size(3), watcher::Config::default().streaming_lists()]
            .into_iter()
            .enumerate()
    {
        let mut events = watcher::watcher(nodes.clone(), config).boxed();
        let mut listed = 0;
        loop {
            match events.try_next().await.unwrap().unwrap() {
                Event::Init => {}
                Event::InitApply(_) => listed += 1,
                Event::InitDone => break,
                other => panic!("before the list was done: {other:?}"),
            }
        }
        assert_eq!(listed, 7);
        let patch = json!({ "metadata": { "annotations": { "round": round.to_string() } } });
        nodes.patch_status("n003", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        let Event::Apply(node) = events.try_next().await.unwrap().unwrap() else { panic!("not the patch") };
        assert_eq!(node.metadata.name.as_deref(), Some("n003"));
        // What was missed while the watch was cut comes after it.
        fault(&api, json!({ "cutWatches": true })).await;
        nodes.delete("n006", &Default::default()).await.unwrap();
        let deleted = loop {
            match events.next().await.unwrap() {
                Ok(Event::Delete(node)) => break node,
                Ok(other) => panic!("not the deletion: {other:?}"),
                Err(_) => {}
            }
        };
        let mut again = deleted.clone();
        again.metadata.resource_version = None;
        nodes.create(&PostParams::default(), &again).await.unwrap();
        // An expired version: the client lists again by itself.
        fault(&api, json!({ "cutWatches": true, "compact": true })).await;
        while !matches!(events.next().await.unwrap(), Ok(Event::InitDone)) {}
    }
}
