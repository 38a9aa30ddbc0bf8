//! Which resources there are, and which of them a path means.

use serde_json::{Value, json};

use super::{Answer, Key, Part, Refusal};

/// One kind of object.
pub struct Resource {
    /// `api/v1` or `apis/GROUP/VERSION`.
    pub prefix: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

const fn resource(
    prefix: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Resource {
    Resource { prefix, plural, kind, namespaced }
}

static RESOURCES: [Resource; 5] = [
    resource("api/v1", "nodes", "Node", false),
    resource("api/v1", "events", "Event", true),
    resource("api/v1", "configmaps", "ConfigMap", true),
    resource("apis/events.k8s.io/v1", "events", "Event", true),
    resource("apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", true),
];

impl Resource {
    /// The name under which the store holds these objects.
    pub fn collection(&self) -> String {
        format!("{}/{}", self.prefix, self.plural)
    }

    pub fn api_version(&self) -> &'static str {
        self.prefix.trim_start_matches("apis/").trim_start_matches("api/")
    }
}

/// What a path names: a collection, an object or its status.
pub struct Target {
    pub resource: &'static Resource,
    /// Empty: cluster-scoped, or all namespaces.
    pub namespace: String,
    pub name: Option<String>,
    pub part: Part,
}

impl Target {
    pub fn parse(path: &str) -> Option<Self> {
        RESOURCES.iter().find_map(|resource| {
            let rest = path.strip_prefix('/')?.strip_prefix(resource.prefix)?.strip_prefix('/')?;
            let (namespace, rest) =
                match rest.strip_prefix("namespaces/").and_then(|rest| rest.split_once('/')) {
                    Some((namespace, rest)) if resource.namespaced => (namespace, rest),
                    _ => ("", rest),
                };
            let mut parts = rest.split('/');
            if parts.next() != Some(resource.plural) {
                return None;
            }
            let name = parts.next().map(str::to_owned);
            let part = match parts.next() {
                None => Part::Main,
                Some("status") if resource.kind == "Node" => Part::Status,
                Some(_) => return None,
            };
            let complete =
                parts.next().is_none() && (name.is_none() || resource.namespaced != namespace.is_empty());
            complete.then(|| Self { resource, namespace: namespace.to_owned(), name, part })
        })
    }

    pub fn collection(&self) -> String {
        self.resource.collection()
    }

    pub fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone().unwrap_or_default())
    }

    /// The store's refusal in Kubernetes' words.
    pub fn refuse(&self, refusal: Refusal) -> Answer {
        let object = format!("{} \"{}\"", self.resource.plural, self.name.as_deref().unwrap_or_default());
        match refusal {
            Refusal::NotFound => Answer::new(404, "NotFound", &format!("{object} not found")),
            Refusal::Exists => Answer::new(409, "AlreadyExists", &format!("{object} already exists")),
            Refusal::Conflict => Answer::new(
                409,
                "Conflict",
                &format!("{object}: the object has been modified; apply your changes to the latest version"),
            ),
            Refusal::Invalid(why) => Answer::new(422, "Invalid", &format!("{object} is invalid: {why}")),
        }
    }
}

/// Which objects of a collection a list or watch is about.
#[derive(Clone)]
pub struct Filter {
    /// Empty: all.
    pub namespace: String,
    pub name: Option<String>,
}

impl Filter {
    pub fn matches(&self, object: &Value) -> bool {
        let has = |field: &str, wanted: &str| object.pointer(field).and_then(Value::as_str) == Some(wanted);
        (self.namespace.is_empty() || has("/metadata/namespace", &self.namespace))
            && self.name.as_deref().is_none_or(|name| has("/metadata/name", name))
    }
}

/// The answer to `/apis`.
pub fn groups() -> Value {
    let group = |name: &str| {
        let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
        json!({ "name": name, "versions": [version], "preferredVersion": version })
    };
    json!({
        "kind": "APIGroupList", "apiVersion": "v1",
        "groups": [group("events.k8s.io"), group("networking.k8s.io")],
    })
}

/// The answer to `/api/v1` and `/apis/GROUP/VERSION`.
pub fn discover(path: &str) -> Option<Value> {
    let prefix = path.strip_prefix('/')?;
    let resources: Vec<Value> = RESOURCES
        .iter()
        .filter(|resource| resource.prefix == prefix)
        .map(|r| {
            let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
            json!({ "name": r.plural, "singularName": "", "namespaced": r.namespaced, "kind": r.kind, "verbs": verbs })
        })
        .collect();
    let version = RESOURCES.iter().find(|resource| resource.prefix == prefix)?.api_version();
    Some(
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources }),
    )
}
