//! What this node says of itself: a merge patch on `nodes/status`, only where it differs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use wg_overlay_mesh::{Advertisement, NodeRecord, annotation};

/// Writes the annotations that differ from what the Node carries. Returns whether any did.
///
/// # Errors
/// What the API server answers.
pub async fn publish(
    client: &Client,
    node: &str,
    record: &NodeRecord,
    advertisement: &Advertisement,
    legacy: bool,
) -> Result<bool, kube::Error> {
    let wanted = advertisement.annotations(legacy);
    let differing: BTreeMap<_, _> =
        wanted.into_iter().filter(|(name, value)| record.annotations.get(name) != Some(value)).collect();
    if differing.is_empty() {
        return Ok(false);
    }
    patch(client, node, json!(differing)).await?;
    Ok(true)
}

/// Removes what the agent wrote from its Node. What a person wrote stays.
///
/// # Errors
/// What the API server answers.
pub async fn withdraw(client: &Client, node: &str, legacy: bool) -> Result<(), kube::Error> {
    let mut names =
        vec![annotation::PUBLIC_KEY, annotation::OVERLAY_IPS, annotation::LISTEN_PORT, annotation::MTU];
    if legacy {
        names.extend([annotation::LEGACY_PUBLIC_KEY, annotation::LEGACY_OVERLAY_IP]);
    }
    let gone: BTreeMap<_, _> = names.into_iter().map(|name| (name, serde_json::Value::Null)).collect();
    patch(client, node, json!(gone)).await
}

async fn patch(client: &Client, node: &str, annotations: serde_json::Value) -> Result<(), kube::Error> {
    let patch = json!({ "metadata": { "annotations": annotations } });
    Api::<Node>::all(client.clone())
        .patch_status(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}
