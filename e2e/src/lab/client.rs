//! The test's own client of node-api: plain HTTP over its socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::eventually;

/// Reads and writes objects as an administrator would.
#[derive(Clone, Debug)]
pub struct ApiClient {
    socket: PathBuf,
}

impl ApiClient {
    /// For the server that listens on a socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Waits until the server answers.
    ///
    /// # Errors
    /// It doesn't within 10 s.
    pub fn await_ready(&self) -> Result<()> {
        eventually(Duration::from_secs(10), "node-api answers", || self.get("/version").map(drop))
    }

    /// The object or list at a path.
    ///
    /// # Errors
    /// The server refuses; the error holds the Status object's code and message.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    /// Creates an object in a collection.
    ///
    /// # Errors
    /// As `get`.
    pub fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        self.call("POST", collection, Some(object))
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// As `get`.
    pub fn replace(&self, path: &str, object: &Value) -> Result<Value> {
        self.call("PUT", path, Some(object))
    }

    /// Applies a merge patch.
    ///
    /// # Errors
    /// As `get`.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.call("PATCH", path, Some(patch))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// As `get`.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.call("DELETE", path, None).map(drop)
    }

    /// A Node.
    ///
    /// # Errors
    /// As `get`.
    pub fn node(&self, name: &str) -> Result<Value> {
        self.get(&format!("/api/v1/nodes/{name}"))
    }

    /// One annotation of a Node, if it is set.
    ///
    /// # Errors
    /// As `get`.
    pub fn annotation(&self, node: &str, key: &str) -> Result<Option<String>> {
        let node = self.node(node)?;
        let annotations = node.pointer("/metadata/annotations");
        Ok(annotations.and_then(|all| all.get(key)).and_then(Value::as_str).map(str::to_owned))
    }

    /// Merges into a Node: metadata and spec.
    ///
    /// # Errors
    /// As `get`.
    pub fn patch_node(&self, name: &str, patch: &Value) -> Result<Value> {
        self.patch(&format!("/api/v1/nodes/{name}"), patch)
    }

    /// Merges into a Node's status subresource: metadata and status.
    ///
    /// # Errors
    /// As `get`.
    pub fn patch_status(&self, name: &str, patch: &Value) -> Result<Value> {
        self.patch(&format!("/api/v1/nodes/{name}/status"), patch)
    }

    /// Sets annotations of a Node; null removes one.
    ///
    /// # Errors
    /// As `get`.
    pub fn annotate(&self, node: &str, annotations: &Value) -> Result<Value> {
        self.patch_node(node, &json!({ "metadata": { "annotations": annotations } }))
    }

    /// Deletes a Node.
    ///
    /// # Errors
    /// As `get`.
    pub fn delete_node(&self, name: &str) -> Result<()> {
        self.delete(&format!("/api/v1/nodes/{name}"))
    }

    /// All Events, of the old API and the new.
    ///
    /// # Errors
    /// As `get`.
    pub fn events(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for path in ["/api/v1/events", "/apis/events.k8s.io/v1/events"] {
            let list = self.get(path)?;
            all.extend(list.get("items").and_then(Value::as_array).into_iter().flatten().cloned());
        }
        Ok(all)
    }

    /// Sets faults (the fields are those of `api::fault::Demand`); gives those in force.
    ///
    /// # Errors
    /// An unknown field.
    pub fn set_faults(&self, demand: &Value) -> Result<Value> {
        self.call("POST", "/faults", Some(demand))
    }

    /// Ends all faults.
    ///
    /// # Errors
    /// The server is gone.
    pub fn clear_faults(&self) -> Result<()> {
        self.call("DELETE", "/faults", None).map(drop)
    }

    /// The requests of the clients under test: method, uri, userAgent.
    ///
    /// # Errors
    /// The server is gone.
    pub fn requests(&self) -> Result<Vec<Value>> {
        Ok(self.get("/requests")?.as_array().cloned().unwrap_or_default())
    }

    /// Forgets the requests so far.
    ///
    /// # Errors
    /// The server is gone.
    pub fn clear_requests(&self) -> Result<()> {
        self.call("DELETE", "/requests", None).map(drop)
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let call =
            async { tokio::time::timeout(Duration::from_secs(30), self.exchange(method, path, body)).await? };
        let (status, answer) =
            runtime.block_on(call).with_context(|| format!("{method} {path} at node-api"))?;
        let answer = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        if status >= 400 {
            let message = answer.get("message").and_then(Value::as_str).unwrap_or_default();
            bail!("{method} {path}: {status}: {message}");
        }
        Ok(answer)
    }

    async fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Bytes)> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let content_type =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = hyper::Request::builder().method(method).uri(path).header("host", "node-api");
        let request = request.header("content-type", content_type);
        let body = Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()));
        let answer = sender.send_request(request.body(body)?).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        Ok((status, body))
    }
}
