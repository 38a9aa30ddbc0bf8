//! Tests of the in-memory Node API: its rules by raw requests, its fitness by an unchanged client.
//! Both drive the service in process: no socket is needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail as its cases do"
)]

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use wg_overlay_e2e::api::NodeApi;

fn server() -> NodeApi {
    NodeApi::new(Duration::from_millis(20))
}

fn request(method: &str, uri: &str, body: &Value) -> Request<Body> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(uri).header("content-type", kind);
    request.body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) }).unwrap()
}

async fn call(router: &Router, method: &str, uri: &str, body: Value) -> (StatusCode, Value) {
    let answer = router.clone().oneshot(request(method, uri, &body)).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn get(api: &NodeApi, uri: &str) -> (StatusCode, Value) {
    call(&api.router(), "GET", uri, Value::Null).await
}

async fn add_nodes(api: &NodeApi, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let node = json!({
            "metadata": { "name": format!("n{number:03}") },
            "spec": { "podCIDRs": [format!("10.244.{number}.0/24")] },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        });
        let (status, _) = call(&api.router(), "POST", "/api/v1/nodes", node).await;
        assert_eq!(status, 201);
    }
}

async fn fault(api: &NodeApi, demand: Value) {
    assert_eq!(call(&api.control_router(), "POST", "/faults", demand).await.0, 200);
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

/// A watch, read line by line.
struct Lines {
    body: axum::body::BodyDataStream,
    rest: Vec<u8>,
}

impl Lines {
    async fn open(api: &NodeApi, query: &str) -> Self {
        let uri = format!("/api/v1/nodes?watch=1&{query}");
        let answer = api.router().oneshot(request("GET", &uri, &Value::Null)).await.unwrap();
        assert_eq!(answer.status(), 200);
        Self { body: answer.into_body().into_data_stream(), rest: Vec::new() }
    }

    /// The next event as `TYPE name`; none at the stream's end, an error where it broke off.
    async fn next(&mut self) -> Result<Option<(String, Value)>, String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).map_err(|e| e.to_string())?;
                let kind = event["type"].as_str().unwrap();
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
                return Ok(Some((format!("{kind} {name}").trim().to_owned(), event["object"].clone())));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.body.next()).await;
            let chunk: Option<Result<Bytes, _>> = chunk.map_err(|_| "nothing for 10 s".to_owned())?;
            match chunk {
                Some(Ok(chunk)) => self.rest.extend_from_slice(&chunk),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Ok(None),
            }
        }
    }

    async fn expect(&mut self, wanted: &str) -> Value {
        let (event, object) = self.next().await.unwrap().expect("the watch ended");
        assert_eq!(event, wanted);
        object
    }
}

#[tokio::test]
async fn pages_show_one_moment() {
    let api = server();
    add_nodes(&api, 0..5).await;
    let (_, first) = get(&api, "/api/v1/nodes?limit=2").await;
    assert_eq!(names(&first), ["n000", "n001"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    add_nodes(&api, 5..6).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = get(&api, &format!("/api/v1/nodes?limit=10&continue={token}")).await;
    assert_eq!(names(&second), ["n002", "n003", "n004"], "n005 came after the list began");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["continue"], Value::Null);
    assert_eq!(get(&api, "/api/v1/nodes?continue=nonsense").await.0, 400);
}

#[tokio::test]
async fn old_versions_are_gone() {
    let api = server();
    add_nodes(&api, 0..3).await;
    let (_, page) = get(&api, "/api/v1/nodes?limit=1").await;
    let (token, version) =
        (page["metadata"]["continue"].clone(), page["metadata"]["resourceVersion"].clone());
    let (token, version) = (token.as_str().unwrap(), version.as_str().unwrap());
    fault(&api, json!({ "compact": true })).await;
    let (status, answer) = get(&api, &format!("/api/v1/nodes?limit=1&continue={token}")).await;
    assert_eq!((status.as_u16(), answer["reason"].as_str()), (410, Some("Expired")));
    let mut watch = Lines::open(&api, &format!("resourceVersion={version}")).await;
    let gone = watch.expect("ERROR").await;
    assert_eq!(gone["code"], 410);
    assert!(watch.next().await.unwrap().is_none());
    assert_eq!(get(&api, "/api/v1/nodes?resourceVersion=999").await.0, 504);
    assert_eq!(get(&api, "/api/v1/nodes?watch=1&resourceVersion=999").await.0, 504);
}

#[tokio::test]
async fn a_watch_sends_every_change_after_its_version() {
    let api = server();
    add_nodes(&api, 0..2).await;
    let mut watch = Lines::open(&api, "resourceVersion=1").await;
    watch.expect("ADDED n001").await;
    let patch = json!({ "metadata": { "annotations": { "a": "b" } } });
    call(&api.router(), "PATCH", "/api/v1/nodes/n000/status", patch.clone()).await;
    let seen = watch.expect("MODIFIED n000").await;
    assert_eq!(seen["metadata"]["annotations"]["a"], "b");
    // The same again is no write.
    call(&api.router(), "PATCH", "/api/v1/nodes/n000/status", patch).await;
    call(&api.router(), "DELETE", "/api/v1/nodes/n001", Value::Null).await;
    watch.expect("DELETED n001").await;
    let mut one = Lines::open(&api, "fieldSelector=metadata.name%3Dn000&timeoutSeconds=0").await;
    one.expect("ADDED n000").await;
    assert!(one.next().await.unwrap().is_none(), "timeoutSeconds ends a watch");
}

#[tokio::test]
async fn bookmarks_come_only_where_asked() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let mut with = Lines::open(&api, "resourceVersion=1&allowWatchBookmarks=true").await;
    let bookmark = with.expect("BOOKMARK").await;
    assert_eq!(
        (bookmark["kind"].as_str(), bookmark["metadata"]["resourceVersion"].as_str()),
        (Some("Node"), Some("1"))
    );
    let mut without = Lines::open(&api, "resourceVersion=1&timeoutSeconds=1").await;
    assert!(without.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_mark() {
    let api = server();
    add_nodes(&api, 0..2).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Lines::open(&api, query).await;
    watch.expect("ADDED n000").await;
    watch.expect("ADDED n001").await;
    let mark = watch.expect("BOOKMARK").await;
    assert_eq!(mark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(
        get(&api, "/api/v1/nodes?watch=1&sendInitialEvents=true").await.0,
        422,
        "without resourceVersionMatch"
    );
    fault(&api, json!({ "streamingLists": false })).await;
    assert_eq!(get(&api, &format!("/api/v1/nodes?watch=1&{query}")).await.0, 422, "an older server");
}

#[tokio::test]
async fn a_patch_on_status_never_changes_spec() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let patch = json!({
        "metadata": { "annotations": { "k": "v" }, "labels": { "l": "v" }, "name": "other", "uid": "other" },
        "spec": { "podCIDRs": ["0.0.0.0/0"] },
        "status": { "phase": "x" },
    });
    let (status, node) = call(&api.router(), "PATCH", "/api/v1/nodes/n000/status", patch.clone()).await;
    assert_eq!(status, 200);
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.0.0/24"]));
    assert_eq!((&node["metadata"]["annotations"]["k"], &node["status"]["phase"]), (&json!("v"), &json!("x")));
    assert_eq!(node["metadata"]["name"], "n000");
    assert_ne!(node["metadata"]["uid"], "other");
    // The object itself is the other way about.
    let patch = json!({ "spec": { "podCIDRs": ["10.244.9.0/24"] }, "status": { "phase": "y" } });
    let (_, node) = call(&api.router(), "PATCH", "/api/v1/nodes/n000", patch).await;
    assert_eq!(
        (&node["spec"]["podCIDRs"], &node["status"]["phase"]),
        (&json!(["10.244.9.0/24"]), &json!("x"))
    );
}

#[tokio::test]
async fn bad_writes_are_refused_by_name() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let router = api.router();
    let cases = [
        ("POST", "/api/v1/nodes", json!({ "metadata": { "name": "n000" } }), 409),
        ("POST", "/api/v1/nodes", json!({ "metadata": {} }), 422),
        ("POST", "/api/v1/nodes", json!([1]), 422),
        ("PATCH", "/api/v1/nodes/none/status", json!({}), 404),
        ("PATCH", "/api/v1/nodes/n000/status", json!({ "metadata": { "annotations": { "a": 1 } } }), 422),
        ("PATCH", "/api/v1/nodes/n000/status", json!({ "metadata": { "resourceVersion": "7" } }), 409),
        ("DELETE", "/api/v1/nodes/none", Value::Null, 404),
        ("PUT", "/api/v1/nodes", json!({}), 405),
        ("GET", "/api/v1/pods", Value::Null, 404),
        ("GET", "/api/v1/namespaces/kube-system/configmaps/kubeadm-config", Value::Null, 404),
    ];
    for (method, uri, body, wanted) in cases {
        let (status, answer) = call(&router, method, uri, body.clone()).await;
        assert_eq!(status.as_u16(), wanted, "{method} {uri} {body}");
        assert_eq!(answer["code"], wanted, "{method} {uri}");
        assert_ne!(answer["message"], "");
    }
    let mut patch = request("PATCH", "/api/v1/nodes/n000", &json!({}));
    patch.headers_mut().insert("content-type", "application/apply-patch+yaml".parse().unwrap());
    assert_eq!(router.oneshot(patch).await.unwrap().status(), 415);
}

#[tokio::test]
async fn events_and_configmaps_are_kept_by_namespace() {
    let api = server();
    let router = api.router();
    let event = json!({ "metadata": { "generateName": "n1." }, "reason": "UserSpaceDevice" });
    for path in ["/api/v1", "/apis/events.k8s.io/v1"] {
        let (status, made) =
            call(&router, "POST", &format!("{path}/namespaces/default/events"), event.clone()).await;
        assert_eq!(status, 201);
        assert!(made["metadata"]["name"].as_str().unwrap().starts_with("n1."));
        assert_eq!(made["metadata"]["namespace"], "default");
        let (_, all) = get(&api, &format!("{path}/events")).await;
        assert_eq!(all["items"][0]["reason"], "UserSpaceDevice");
        assert!(names(&get(&api, &format!("{path}/namespaces/other/events")).await.1).is_empty());
    }
    let map = json!({ "metadata": { "name": "kubeadm-config" }, "data": { "ClusterConfiguration": "x" } });
    call(&router, "POST", "/api/v1/namespaces/kube-system/configmaps", map).await;
    let (status, _) = get(&api, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config").await;
    assert_eq!(status, 200);
    let (_, policies) = get(&api, "/apis/networking.k8s.io/v1/networkpolicies").await;
    assert_eq!((policies["kind"].as_str(), names(&policies).len()), (Some("NetworkPolicyList"), 0));
}

#[tokio::test]
async fn conditions_are_merged_by_type() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
    let network = |status: &str| condition("NetworkUnavailable", status);
    let delete = json!({ "type": "NetworkUnavailable", "$patch": "delete" });
    let (ready, missing) = (condition("Ready", "True"), json!({ "type": "Missing", "$patch": "delete" }));
    let steps = [
        (delete.clone(), json!([])),
        (ready.clone(), json!([ready])),
        (network("True"), json!([ready, network("True")])),
        (network("False"), json!([ready, network("False")])),
        (missing, json!([ready, network("False")])),
        (delete, json!([ready])),
    ];
    for (condition, wanted) in steps {
        let patch = json!({ "status": { "conditions": [condition] } });
        let mut request = request("PATCH", "/api/v1/nodes/n000/status", &patch);
        request
            .headers_mut()
            .insert("content-type", "application/strategic-merge-patch+json".parse().unwrap());
        assert_eq!(api.router().oneshot(request).await.unwrap().status(), 200);
        let (_, node) = get(&api, "/api/v1/nodes/n000").await;
        assert_eq!(node["status"]["conditions"], wanted);
    }
}

#[tokio::test]
async fn faults_meet_clients_and_spare_the_test() {
    let api = server();
    add_nodes(&api, 0..1).await;
    fault(&api, json!({ "fail": { "count": 2, "status": 500, "path": "/api/v1/nodes", "method": "GET" } }))
        .await;
    assert_eq!(call(&api.control_router(), "GET", "/api/v1/nodes", Value::Null).await.0, 200);
    assert_eq!(get(&api, "/version").await.0, 200);
    assert_eq!(get(&api, "/api/v1/nodes").await.0, 500);
    assert_eq!(get(&api, "/api/v1/nodes/n000").await.0, 500);
    assert_eq!(get(&api, "/api/v1/nodes").await.0, 200);
    fault(&api, json!({ "emptyLists": 1 })).await;
    assert!(names(&get(&api, "/api/v1/nodes?limit=1").await.1).is_empty());
    assert_eq!(names(&get(&api, "/api/v1/nodes").await.1), ["n000"]);
    fault(&api, json!({ "fail": { "count": 1, "status": 429 } })).await;
    let busy = api.router().oneshot(request("GET", "/api/v1/nodes", &Value::Null)).await.unwrap();
    assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].as_bytes()), (429, &b"1"[..]));
    let (_, log) = call(&api.control_router(), "GET", "/requests", Value::Null).await;
    assert!(log.as_array().unwrap().iter().any(|entry| entry["uri"] == "/api/v1/nodes?limit=1"));
    let (status, answer) = call(&api.control_router(), "POST", "/faults", json!({ "silence": true })).await;
    assert_eq!(status, 400);
    assert!(answer["message"].as_str().unwrap().contains("silent"), "{answer}");
}

#[tokio::test]
async fn a_token_that_is_demanded_is_asked_of_clients_alone() {
    let api = server();
    fault(&api, json!({ "token": "secret" })).await;
    for (authorization, expected) in [("Bearer secret", 200), ("Bearer other", 401), ("secret", 401)] {
        let mut asked = request("GET", "/api/v1/nodes", &Value::Null);
        asked.headers_mut().insert("authorization", authorization.parse().unwrap());
        assert_eq!(api.router().oneshot(asked).await.unwrap().status(), expected, "{authorization}");
    }
    assert_eq!(get(&api, "/api/v1/nodes").await.0, 401);
    assert_eq!(call(&api.control_router(), "GET", "/api/v1/nodes", Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_cut_list_breaks_off_half_way() {
    let api = server();
    add_nodes(&api, 0..2).await;
    fault(&api, json!({ "cutLists": 1 })).await;
    let answer = api.router().oneshot(request("GET", "/api/v1/nodes", &Value::Null)).await.unwrap();
    let mut body = answer.into_body().into_data_stream();
    let half = body.next().await.unwrap().unwrap();
    assert!(half.starts_with(b"{") && serde_json::from_slice::<Value>(&half).is_err());
    assert!(body.next().await.unwrap().is_err());
    assert_eq!(names(&get(&api, "/api/v1/nodes").await.1), ["n000", "n001"]);
}

#[tokio::test]
async fn a_cut_watch_breaks_off_within_a_line() {
    let api = server();
    let mut watch = Lines::open(&api, "").await;
    add_nodes(&api, 0..1).await;
    watch.expect("ADDED n000").await;
    fault(&api, json!({ "cutWatches": true })).await;
    assert!(watch.next().await.is_err());
    assert!(!watch.rest.is_empty() && !watch.rest.contains(&b'\n'));
}

#[tokio::test]
async fn a_silent_watch_sends_later_what_it_held_back() {
    let api = server();
    let mut watch = Lines::open(&api, "allowWatchBookmarks=1&timeoutSeconds=0").await;
    fault(&api, json!({ "silent": true })).await;
    add_nodes(&api, 0..1).await;
    let silence = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
    assert!(silence.is_err(), "a silent watch sent {silence:?}");
    fault(&api, json!({ "silent": false })).await;
    watch.expect("ADDED n000").await;
}

/// The client of the agent, unchanged, with this server as its transport.
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
