//! Patches: the formats that the agent and the tests send, and what a patch may change.
//!
//! A patch on `status` changes metadata and status and never spec; a write to the object itself
//! changes all but its status. That is how kube-apiserver treats nodes.

use serde_json::{Map, Value};

/// Which part of the API a write came through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object itself.
    Main,
    /// Its `status` subresource.
    Status,
}

/// The body's format.
#[derive(Clone, Copy)]
pub enum Format {
    /// RFC 7396.
    Merge,
    /// A merge patch in which `status.conditions` and `status.addresses` are merged by `type`, and an item with
    /// `$patch: delete` goes.
    Strategic,
}

impl Format {
    /// The format that a `Content-Type` names; none for those that this server has not.
    pub fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().map(str::trim) {
            Some("application/merge-patch+json") => Some(Self::Merge),
            Some("application/strategic-merge-patch+json") => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// The object with the patch applied, before `confine`.
pub fn apply(old: &Value, mut patch: Value, format: Format) -> Value {
    if matches!(format, Format::Strategic) {
        for list in ["/status/conditions", "/status/addresses"] {
            if let Some(Value::Array(new)) = patch.pointer_mut(list) {
                let old = old.pointer(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                *new = merge_by_type(old, new);
            }
        }
    }
    let mut object = old.clone();
    json_patch::merge(&mut object, &patch);
    object
}

/// Puts back what a write through `part` may not change.
pub fn confine(old: &Value, mut new: Value, part: Part) -> Value {
    let field = match part {
        Part::Main => "status",
        Part::Status => "spec",
    };
    if let Some(object) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => object.insert(field.into(), value.clone()),
            None => object.remove(field),
        };
    }
    new
}

/// The first annotation or label that is not a string.
pub fn wrong_metadata(object: &Value) -> Option<String> {
    ["annotations", "labels"].into_iter().find_map(|field| {
        let map: Option<&Map<String, Value>> = object.pointer(&format!("/metadata/{field}"))?.as_object();
        match map {
            None => Some(format!("metadata.{field}: not an object")),
            Some(map) => {
                let (key, _) = map.iter().find(|(_, value)| !value.is_string())?;
                Some(format!("metadata.{field}[{key}]: not a string"))
            }
        }
    })
}

fn merge_by_type(old: &[Value], new: &[Value]) -> Vec<Value> {
    let mut merged = old.to_vec();
    for item in new {
        if item.get("$patch").is_some_and(|directive| directive == "delete") {
            merged.retain(|held| held.get("type") != item.get("type"));
            continue;
        }
        match merged.iter_mut().find(|held| held.get("type") == item.get("type")) {
            Some(held) => json_patch::merge(held, item),
            None => merged.push(item.clone()),
        }
    }
    merged
}
