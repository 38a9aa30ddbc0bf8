//! Faults on demand: they meet clients and spare the test.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{Lines, add_nodes, call, fault, get, names, request, server};

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
async fn a_server_that_lags_streams_what_was_and_stands_still() {
    let api = server();
    add_nodes(&api, 0..1).await;
    fault(&api, json!({ "lag": true })).await;
    add_nodes(&api, 1..2).await;
    let stream = "allowWatchBookmarks=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut watch = Lines::open(&api, stream).await;
    watch.expect("ADDED n000").await;
    watch.expect("BOOKMARK").await;
    add_nodes(&api, 2..3).await;
    fault(&api, json!({ "cutWatches": true })).await;
    assert!(watch.next().await.is_err());
    fault(&api, json!({ "lag": false })).await;
    let mut watch = Lines::open(&api, stream).await;
    for name in ["n000", "n001", "n002"] {
        watch.expect(&format!("ADDED {name}")).await;
    }
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
