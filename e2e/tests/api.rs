//! Tests of the in-memory Node API: its rules by raw requests, its fitness by an unchanged client.
//! Both drive the service in process: no socket is needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail as its cases do"
)]

#[path = "api/client.rs"]
mod client;
#[path = "api/faults.rs"]
mod faults;
#[path = "api/reads.rs"]
mod reads;
#[path = "api/writes.rs"]
mod writes;

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
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
