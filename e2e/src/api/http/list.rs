//! Lists and watches: the query's rules (resource versions, limit and continue, streaming lists).

use std::io;
use std::ops::Bound;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::path::{Filter, Target};
use super::{Answer, Key};
use crate::api::NodeApi;
use crate::api::watch::{Start, Watch};

/// The timeout of a watch that names none; kube-apiserver takes 30 to 60 minutes.
const WATCH_SECONDS: u64 = 1800;

/// The query of a list or watch.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Options {
    limit: usize,
    #[serde(rename = "continue")]
    token: String,
    resource_version: String,
    resource_version_match: String,
    watch: String,
    allow_watch_bookmarks: String,
    send_initial_events: String,
    timeout_seconds: Option<u64>,
    field_selector: String,
    label_selector: String,
}

/// Answers a GET on a collection.
pub fn answer(api: &NodeApi, target: Target, options: Options) -> Result<Response, Answer> {
    if !options.label_selector.is_empty() {
        return Err(bad("labelSelector is not served here"));
    }
    let name = match options.field_selector.split_once('=') {
        None if options.field_selector.is_empty() => None,
        Some(("metadata.name", name)) => Some(name.trim_start_matches('=').to_owned()),
        _ => {
            return Err(bad(&format!(
                "fieldSelector {:?}: only metadata.name=NAME is served here",
                options.field_selector
            )));
        }
    };
    let filter = Filter { namespace: target.namespace.clone(), name };
    if truth("watch", &options.watch)? {
        return watch(api, &target, filter, &options);
    }
    if !options.send_initial_events.is_empty() {
        return Err(Answer::new(422, "Invalid", "sendInitialEvents is forbidden for list"));
    }
    list(api, &target, &filter, &options)
}

fn watch(api: &NodeApi, target: &Target, filter: Filter, options: &Options) -> Result<Response, Answer> {
    let initial = truth("sendInitialEvents", &options.send_initial_events)?;
    let bookmarks = truth("allowWatchBookmarks", &options.allow_watch_bookmarks)?;
    if !options.send_initial_events.is_empty() {
        if !api.faults().streaming_lists {
            return Err(Answer::new(
                422,
                "Invalid",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ));
        }
        if options.resource_version_match != "NotOlderThan" {
            return Err(Answer::new(
                422,
                "Invalid",
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
    } else if !options.resource_version_match.is_empty() {
        return Err(Answer::new(
            422,
            "Invalid",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    let asked = version(&options.resource_version)?;
    let newest = api.store().version();
    if asked > newest {
        return Err(too_large(asked, newest));
    }
    let start = match (initial, asked) {
        (true, _) => Start::Present { marked: bookmarks, empty: api.faults().take_empty_list() },
        (false, 0) => Start::Present { marked: false, empty: false },
        (false, version) => Start::After(version),
    };
    let timeout = Duration::from_secs(options.timeout_seconds.unwrap_or(WATCH_SECONDS));
    let watch = Watch { resource: target.resource, filter, start, bookmarks, timeout };
    Ok(([("content-type", "application/json")], watch.into_body(api.clone())).into_response())
}

fn list(api: &NodeApi, target: &Target, filter: &Filter, options: &Options) -> Result<Response, Answer> {
    let collection = target.collection();
    let empty = api.faults().take_empty_list();
    let mut store = api.store();
    let (at, after, objects) = if options.token.is_empty() {
        let (asked, newest) = (version(&options.resource_version)?, store.version());
        match options.resource_version_match.as_str() {
            "Exact" if asked == 0 => return Err(bad("resourceVersionMatch=Exact needs a resourceVersion")),
            "Exact" if asked < newest => {
                return Err(gone("The resourceVersion for the provided list is too old."));
            }
            "" | "NotOlderThan" | "Exact" => {}
            other => return Err(bad(&format!("resourceVersionMatch: {other:?}"))),
        }
        if asked > newest {
            return Err(too_large(asked, newest));
        }
        (newest, None, store.list(&collection))
    } else {
        let (at, key) = decode(&options.token).ok_or_else(|| bad("continue key is not valid"))?;
        let held = store.snapshot(&collection, at);
        let held = held.ok_or_else(|| {
            gone("The provided continue parameter is too old to display a consistent list result.")
        })?;
        (at, Some(key), held)
    };
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest =
        objects.range((from, Bound::Unbounded)).filter(|(_, object)| filter.matches(object)).peekable();
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut page = Vec::new();
    let mut last = None;
    while page.len() < limit
        && !empty
        && let Some((key, object)) = rest.next()
    {
        page.push(untyped(object));
        last = Some(key);
    }
    let mut metadata = json!({ "resourceVersion": at.to_string() });
    if let (Some(last), Some(_), Some(metadata)) = (last, rest.peek(), metadata.as_object_mut()) {
        metadata.insert("continue".into(), json!(encode(at, last)));
        metadata.insert("remainingItemCount".into(), json!(rest.count()));
        if options.token.is_empty() {
            store.keep_snapshot(&collection);
        }
    }
    let kind = format!("{}List", target.resource.kind);
    let body = json!({ "kind": kind, "apiVersion": target.resource.api_version(), "metadata": metadata, "items": page });
    Ok(if api.faults().take_cut_list() { half(&body.to_string()) } else { Json(body).into_response() })
}

/// An answer whose connection ends before it does.
fn half(text: &str) -> Response {
    let sent = Bytes::copy_from_slice(text.as_bytes().get(..text.len() / 2).unwrap_or_default());
    let ends = futures::stream::iter([Ok(sent), Err(io::Error::other("list cut on demand"))]);
    ([("content-type", "application/json")], Body::from_stream(ends)).into_response()
}

/// A list's items carry neither kind nor version, as kube-apiserver's don't.
fn untyped(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(object) = object.as_object_mut() {
        object.remove("kind");
        object.remove("apiVersion");
    }
    object
}

fn encode(version: u64, (namespace, name): &Key) -> String {
    URL_SAFE_NO_PAD.encode(json!([version, namespace, name]).to_string())
}

fn decode(token: &str) -> Option<(u64, Key)> {
    let (version, namespace, name) = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    Some((version, (namespace, name)))
}

fn version(text: &str) -> Result<u64, Answer> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| bad(&format!("resourceVersion: Invalid value: {text:?}")))
}

fn truth(field: &str, text: &str) -> Result<bool, Answer> {
    match text {
        "1" | "true" => Ok(true),
        "" | "0" | "false" => Ok(false),
        other => Err(bad(&format!("{field}: Invalid value: {other:?}"))),
    }
}

fn bad(message: &str) -> Answer {
    Answer::new(400, "BadRequest", message)
}

fn gone(message: &str) -> Answer {
    Answer::new(410, "Expired", message)
}

fn too_large(asked: u64, newest: u64) -> Answer {
    Answer::new(504, "Timeout", &format!("Too large resource version: {asked}, current: {newest}"))
}
