//! Objects, their resource versions and their history.
//!
//! One counter numbers every write of every resource, as etcd's revision does. It owns no HTTP
//! and no time but the creation timestamp that the caller hands in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

/// How many changes a watch may lie behind before it gets 410 Gone.
const HISTORY: usize = 4096;
/// How many paged lists may be under way before the oldest one's continue token expires.
const SNAPSHOTS: usize = 16;

/// A resource's address: `api/v1/nodes`, `apis/events.k8s.io/v1/events`.
pub type Collection = String;
/// Namespace (empty for cluster-scoped resources) and name.
pub type Key = (String, String);
/// The state of one collection at one moment.
pub type Objects = BTreeMap<Key, Arc<Value>>;

/// One change, as a watch sends it.
#[derive(Clone)]
pub struct Change {
    /// The resource version that the change made.
    pub version: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: &'static str,
    /// Where it happened.
    pub collection: Collection,
    /// The object after the change; a deleted one as it last was.
    pub object: Arc<Value>,
}

/// Why the store refused.
pub enum Refusal {
    /// No such object.
    NotFound,
    /// The object exists already.
    Exists,
    /// The object's resource version isn't the one that the caller knew.
    Conflict,
    /// The object lacks something.
    Invalid(String),
}

#[derive(Default)]
pub struct Store {
    version: u64,
    /// The newest change that is no longer in the history.
    compacted: u64,
    objects: BTreeMap<Collection, Objects>,
    history: VecDeque<Change>,
    snapshots: VecDeque<(u64, Collection, Objects)>,
}

impl Store {
    /// The newest resource version.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, collection: &str, key: &Key) -> Result<Arc<Value>, Refusal> {
        self.objects.get(collection).and_then(|all| all.get(key)).cloned().ok_or(Refusal::NotFound)
    }

    /// The state of a collection as it is.
    pub fn list(&self, collection: &str) -> Objects {
        self.objects.get(collection).cloned().unwrap_or_default()
    }

    /// The state of a collection as it was when a paged list began; none once that has expired.
    pub fn snapshot(&self, collection: &str, version: u64) -> Option<Objects> {
        let found = self.snapshots.iter().find(|(v, c, _)| *v == version && c == collection);
        found.map(|(_, _, objects)| objects.clone())
    }

    /// Keeps the present state for the next pages of a list.
    pub fn keep_snapshot(&mut self, collection: &str) {
        if self.snapshot(collection, self.version).is_none() {
            self.snapshots.push_back((self.version, collection.to_owned(), self.list(collection)));
            while self.snapshots.len() > SNAPSHOTS {
                self.snapshots.pop_front();
            }
        }
    }

    /// The changes of a collection after a version; none where the history no longer reaches there.
    pub fn since(&self, collection: &str, version: u64) -> Option<Vec<Change>> {
        if version < self.compacted {
            return None;
        }
        let newer = self.history.iter().filter(|c| c.version > version && c.collection == collection);
        Some(newer.cloned().collect())
    }

    /// Forgets all history and snapshots: every older resource version is gone.
    pub fn compact(&mut self) {
        // A write that belongs to no collection: else the newest version would still be valid.
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
        self.snapshots.clear();
    }

    /// Adds an object; `now` is its creation timestamp (RFC 3339).
    pub fn create(
        &mut self,
        collection: &str,
        mut object: Value,
        namespace: &str,
        now: &str,
    ) -> Result<Arc<Value>, Refusal> {
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.version + 1);
        let meta = metadata(&mut object)?;
        if let (None, Some(prefix)) = (text(meta.get("name")), text(meta.get("generateName"))) {
            meta.insert("name".into(), json!(format!("{prefix}{:05x}", self.version + 1)));
        }
        let name =
            text(meta.get("name")).ok_or_else(|| Refusal::Invalid("metadata.name: Required value".into()))?;
        let key = (namespace.to_owned(), name);
        if !namespace.is_empty() {
            meta.insert("namespace".into(), json!(namespace));
        }
        meta.insert("uid".into(), json!(uid));
        meta.entry("creationTimestamp").or_insert_with(|| json!(now));
        if self.get(collection, &key).is_ok() {
            return Err(Refusal::Exists);
        }
        self.write(collection, key, object, "ADDED")
    }

    /// Replaces an object. What identifies it (name, namespace, uid, creation) stays; a resource
    /// version in the new object is a precondition; an equal object is no write, as in Kubernetes.
    pub fn update(&mut self, collection: &str, key: &Key, mut object: Value) -> Result<Arc<Value>, Refusal> {
        let old = self.get(collection, key)?;
        let known = text(old.pointer("/metadata/resourceVersion"));
        let meta = metadata(&mut object)?;
        let asked = text(meta.get("resourceVersion")).filter(|v| !v.is_empty());
        if asked.is_some() && asked != known {
            return Err(Refusal::Conflict);
        }
        for field in ["name", "namespace", "uid", "creationTimestamp", "resourceVersion"] {
            match old.pointer(&format!("/metadata/{field}")) {
                Some(value) => meta.insert(field.into(), value.clone()),
                None => meta.remove(field),
            };
        }
        if *old == object {
            return Ok(old);
        }
        self.write(collection, key.clone(), object, "MODIFIED")
    }

    pub fn delete(&mut self, collection: &str, key: &Key) -> Result<Arc<Value>, Refusal> {
        let removed = self.objects.get_mut(collection).and_then(|all| all.remove(key));
        let mut object = removed.map(Arc::unwrap_or_clone).ok_or(Refusal::NotFound)?;
        self.version += 1;
        metadata(&mut object)?.insert("resourceVersion".into(), json!(self.version.to_string()));
        Ok(self.record(collection, Arc::new(object), "DELETED"))
    }

    fn write(
        &mut self,
        collection: &str,
        key: Key,
        mut object: Value,
        kind: &'static str,
    ) -> Result<Arc<Value>, Refusal> {
        metadata(&mut object)?.insert("resourceVersion".into(), json!((self.version + 1).to_string()));
        self.version += 1;
        let object = Arc::new(object);
        self.objects.entry(collection.to_owned()).or_default().insert(key, object.clone());
        Ok(self.record(collection, object, kind))
    }

    fn record(&mut self, collection: &str, object: Arc<Value>, kind: &'static str) -> Arc<Value> {
        let change =
            Change { version: self.version, kind, collection: collection.to_owned(), object: object.clone() };
        self.history.push_back(change);
        while self.history.len() > HISTORY {
            self.compacted = self.history.pop_front().map_or(self.compacted, |c| c.version);
        }
        object
    }
}

fn metadata(object: &mut Value) -> Result<&mut serde_json::Map<String, Value>, Refusal> {
    let object =
        object.as_object_mut().ok_or_else(|| Refusal::Invalid("the body is not an object".into()))?;
    let meta = object.entry("metadata").or_insert_with(|| json!({}));
    meta.as_object_mut().ok_or_else(|| Refusal::Invalid("metadata: not an object".into()))
}

fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::to_owned)
}
