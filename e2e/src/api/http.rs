//! Paths, queries and answers: what of the Kubernetes API is here, and its status objects.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::NodeApi;
use super::patch::{Format, Part, apply, confine, wrong_metadata};
use super::store::{Key, Refusal};

pub mod control;
mod list;
mod path;

pub use path::{Filter, Resource};

use path::Target;

/// The API without faults.
pub fn resources(api: &NodeApi) -> Router {
    Router::new()
        .route(
            "/version",
            get(async || Json(json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.0-node-api" }))),
        )
        .route("/api", get(async || Json(json!({ "kind": "APIVersions", "versions": ["v1"] }))))
        .route("/apis", get(async || Json(path::groups())))
        .route("/readyz", get(async || "ok"))
        .fallback(resource)
        .with_state(api.clone())
}

async fn resource(
    State(api): State<NodeApi>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Answer> {
    let path = uri.path();
    if let Some(discovery) = path::discover(path) {
        return Ok(Json(discovery).into_response());
    }
    let target = Target::parse(path)
        .ok_or_else(|| Answer::new(404, "NotFound", "the server could not find the requested resource"))?;
    match (method.as_str(), &target.name) {
        ("GET", None) => {
            let Query(query) = Query::<list::Options>::try_from_uri(&uri)
                .map_err(|e| Answer::new(400, "BadRequest", &e.to_string()))?;
            list::answer(&api, target, query)
        }
        ("GET", Some(_)) => {
            let object =
                api.store().get(&target.collection(), &target.key()).map_err(|r| target.refuse(r))?;
            Ok(Json(&*object).into_response())
        }
        ("POST", None) => create(&api, &target, &body),
        ("PUT", Some(_)) => change(&api, &target, |_| parse(&body)),
        ("PATCH", Some(_)) => {
            let content_type =
                headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let format = Format::of(content_type).ok_or_else(|| {
                Answer::new(
                    415,
                    "UnsupportedMediaType",
                    &format!("patch format {content_type:?} is not served here"),
                )
            })?;
            change(&api, &target, |old| Ok(apply(old, parse(&body)?, format)))
        }
        ("DELETE", Some(_)) if target.part == Part::Main => {
            let gone = api.store().delete(&target.collection(), &target.key());
            gone.map_err(|r| target.refuse(r))?;
            api.notify();
            Ok(Json(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
                .into_response())
        }
        _ => Err(Answer::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

fn create(api: &NodeApi, target: &Target, body: &[u8]) -> Result<Response, Answer> {
    let object = checked(target, typed(target.resource, parse(body)?))?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let made = api.store().create(&target.collection(), object, &target.namespace, &now);
    let made = made.map_err(|r| target.refuse(r))?;
    api.notify();
    Ok((StatusCode::CREATED, Json(&*made)).into_response())
}

fn change(
    api: &NodeApi,
    target: &Target,
    new: impl FnOnce(&Value) -> Result<Value, Answer>,
) -> Result<Response, Answer> {
    let changed = {
        let mut store = api.store();
        let old = store.get(&target.collection(), &target.key()).map_err(|r| target.refuse(r))?;
        let new = typed(target.resource, confine(&old, new(&old)?, target.part));
        store
            .update(&target.collection(), &target.key(), checked(target, new)?)
            .map_err(|r| target.refuse(r))?
    };
    api.notify();
    Ok(Json(&*changed).into_response())
}

fn parse(body: &[u8]) -> Result<Value, Answer> {
    serde_json::from_slice(body)
        .map_err(|e| Answer::new(400, "BadRequest", &format!("the body is not JSON: {e}")))
}

fn checked(target: &Target, object: Value) -> Result<Value, Answer> {
    match wrong_metadata(&object) {
        Some(fault) => Err(target.refuse(Refusal::Invalid(fault))),
        None => Ok(object),
    }
}

fn typed(resource: &Resource, mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.insert("kind".into(), json!(resource.kind));
        object.insert("apiVersion".into(), json!(resource.api_version()));
    }
    object
}

/// A refusal as Kubernetes words it: a Status object.
pub struct Answer {
    code: u16,
    body: Value,
}

impl Answer {
    pub fn new(code: u16, reason: &str, message: &str) -> Self {
        Self { code, body: status_object(code, reason, message) }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = (code == StatusCode::TOO_MANY_REQUESTS).then_some([(header::RETRY_AFTER, "1")]);
        (code, retry.into_iter().next().map(axum::response::AppendHeaders), Json(self.body)).into_response()
    }
}

/// A Status object of the kind Failure.
pub fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
