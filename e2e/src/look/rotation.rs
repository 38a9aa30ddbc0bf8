//! How far the change of a node's key is, as its Node, its `status` and its devices tell.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::converged::status;
use super::{KEY, key_of};
use crate::lab::{Lab, eventually};

/// The annotation that holds the key a node rotates to.
pub const NEXT_KEY: &str = "wg-overlay.io/next-public-key";
/// That of how far a rotation is; absent when none is under way.
pub const ROTATION: &str = "wg-overlay.io/rotation";

/// Waits until no key changes any more, no node has a second device or any key but the published ones, and each publishes a
/// next key that is not its key.
///
/// # Errors
/// That takes longer, or the API doesn't answer.
pub fn await_end(lab: &Lab, patience: Duration) -> Result<()> {
    eventually(patience, "no key changes any more", || {
        let published = published(lab)?;
        for node in lab.nodes() {
            let name = node.name();
            let rotation = &status(node)?["rotation"];
            ensure!(rotation["phase"] == Value::Null, "{name}: {rotation}");
            ensure!(lab.api().annotation(name, ROTATION)?.is_none(), "{name} says that its key changes");
            ensure!(node.exec("ip", ["link", "show", "wgo1"]).is_err(), "{name} has a second device");
            let key = key_of(lab, name)?;
            let next = lab.api().annotation(name, NEXT_KEY)?;
            ensure!(next.is_some_and(|next| next != key), "{name}: the next key is its key");
            let shown = node.exec("wg", ["show", "all", "public-key"])?;
            ensure!(
                shown.trim_end() == format!("wgo0\t{key}"),
                "{name}: published {key}, and wg shows {shown}"
            );
            let peers = node.exec("wg", ["show", "all", "peers"])?;
            let mut found: BTreeSet<String> =
                peers.lines().map(|line| line.trim_start_matches("wgo0\t").to_owned()).collect();
            found.insert(key);
            ensure!(found == published, "{name}: published {published:?}, and wg shows {found:?}");
        }
        Ok(())
    })
}

fn published(lab: &Lab) -> Result<BTreeSet<String>> {
    let list = lab.api().get("/api/v1/nodes")?;
    let keys = list["items"].as_array().into_iter().flatten();
    Ok(keys.filter_map(|node| Some(node["metadata"]["annotations"][KEY].as_str()?.to_owned())).collect())
}
