//! The two doors: the clients' meets faults and writes the request log; the test's own, on the
//! server's socket, does neither, and has `/faults` and `/requests`.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::{Answer, resources};
use crate::api::NodeApi;
use crate::api::fault::{Demand, Faults};

/// How many requests the log holds.
const REQUEST_LOG: usize = 10_000;

/// What the clients under test see.
pub fn client_router(api: NodeApi) -> Router {
    resources(&api).layer(from_fn_with_state(api, meet_faults))
}

/// What the test itself sees.
pub fn control_router(api: NodeApi) -> Router {
    let own = Router::new()
        .route("/faults", get(show_faults).post(set_faults).delete(clear_faults))
        .route("/requests", get(show_requests).delete(clear_requests))
        .with_state(api.clone());
    own.merge(resources(&api))
}

async fn meet_faults(State(api): State<NodeApi>, request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().to_string(), request.uri().to_string());
    let agent = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    api.log_request(json!({ "method": method, "uri": uri, "userAgent": agent }));
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (delay, known, failure) = {
        let mut faults = api.faults();
        let known = faults.knows(authorization);
        (faults.delay_millis, known, faults.take_failure(&method, request.uri().path()))
    };
    tokio::time::sleep(Duration::from_millis(delay)).await;
    if !known {
        return Answer::new(401, "Unauthorized", "Unauthorized").into_response();
    }
    match failure {
        Some(status) => Answer::new(status, "InternalError", "failed on demand").into_response(),
        None => next.run(request).await,
    }
}

impl NodeApi {
    fn requests(&self) -> MutexGuard<'_, Vec<Value>> {
        self.inner.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_request(&self, request: Value) {
        let mut log = self.requests();
        if log.len() < REQUEST_LOG {
            log.push(request);
        }
    }
}

async fn show_requests(State(api): State<NodeApi>) -> Json<Vec<Value>> {
    Json(api.requests().clone())
}

async fn clear_requests(State(api): State<NodeApi>) {
    api.requests().clear();
}

async fn show_faults(State(api): State<NodeApi>) -> Json<Value> {
    Json(api.faults().to_json())
}

async fn clear_faults(State(api): State<NodeApi>) {
    *api.faults() = Faults::default();
    api.notify();
}

async fn set_faults(State(api): State<NodeApi>, body: Bytes) -> Result<Json<Value>, Answer> {
    let demand: Demand =
        serde_json::from_slice(&body).map_err(|e| Answer::new(400, "BadRequest", &format!("faults: {e}")))?;
    let present = {
        let store = api.store();
        (store.version(), store.list("api/v1/nodes"))
    };
    api.faults().set(&demand, present);
    if demand.compact {
        api.store().compact();
    }
    if demand.cut_watches {
        api.inner.cuts.send_modify(|count| *count += 1);
    }
    api.notify();
    Ok(Json(api.faults().to_json()))
}
