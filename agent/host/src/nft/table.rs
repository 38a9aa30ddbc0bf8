//! Our own tables: each applied in one transaction, recorded, compared.
//!
//! The kernel gives every rule, set and chain a handle that is never used again, so a listing that is equal to the
//! recorded one, handles included, is of the very objects that were applied.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wg_overlay_mesh::TABLE;

use super::{
    Counters, NftError,
    program::{list_existing, run},
};

/// The table as it was applied, and as the kernel listed it right after.
#[derive(Serialize, Deserialize)]
struct Record {
    ruleset: String,
    listing: Vec<Value>,
}

/// A table's objects, and the elements that were taken out of its sets.
type Listing = (Vec<Value>, Vec<Value>);

/// One of our tables.
#[derive(Debug, Clone)]
pub(super) struct Table {
    family: &'static str,
    /// What the names of those sets begin with whose elements change without the table.
    filled: &'static str,
    record: PathBuf,
}

/// A table as it was found.
pub(super) struct Found {
    /// The rules as they were last applied, if the kernel still holds exactly those; empty otherwise.
    pub(super) ruleset: String,
    /// The elements that change without the table.
    pub(super) elements: Vec<Value>,
}

impl Table {
    /// The table of family `inet`.
    pub(super) fn guards(state_dir: &Path) -> Self {
        Self { family: "inet", filled: "endpoints", record: state_dir.join("nftables.json") }
    }

    /// The table of family `bridge`.
    pub(super) fn ports(state_dir: &Path) -> Self {
        Self { family: "bridge", filled: "pods", record: state_dir.join("nftables-bridge.json") }
    }

    pub(super) fn observe(&self) -> Result<Option<Found>, NftError> {
        let Some((listing, elements)) = self.listing()? else { return Ok(None) };
        // A record that is missing or torn only means that the table is applied once more.
        let record = fs::read(&self.record).ok();
        let applied = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let ruleset = applied.filter(|r| r.listing == listing).map(|r| r.ruleset).unwrap_or_default();
        Ok(Some(Found { ruleset, elements }))
    }

    /// Replaces the table and its elements in one transaction; the counters go on from where they are said to be.
    /// `generation` tells how many transactions there have been: where another's came between ours and the listing of it,
    /// nothing is recorded, or its work would pass for ours, and the next observation finds a table to be applied again.
    pub(super) fn set(
        &self,
        ruleset: &str,
        elements: &str,
        counters: &Counters,
        mut generation: impl FnMut() -> Option<u32>,
    ) -> Result<(), NftError> {
        let mut script = ruleset.to_owned();
        for (name, (packets, bytes)) in counters {
            script = script.replace(
                &format!("counter {name} {{ packets 0 bytes 0 }}"),
                &format!("counter {name} {{ packets {packets} bytes {bytes} }}"),
            );
        }
        script.push_str(elements);
        let before = generation();
        run("nft", &["-f", "-"], Some(&script))?;
        let listing = self.listing()?.unwrap_or_default().0;
        if before.is_some_and(|before| generation() != Some(before.wrapping_add(1))) {
            return forget(&self.record);
        }
        write(&self.record, &Record { ruleset: ruleset.to_owned(), listing })
    }

    pub(super) fn remove(&self) -> Result<(), NftError> {
        let Self { family, .. } = self;
        let script = format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n");
        run("nft", &["-f", "-"], Some(&script))?;
        forget(&self.record)
    }

    fn listing(&self) -> Result<Option<Listing>, NftError> {
        Ok(list_existing(&["table", self.family, TABLE])?.map(|objects| apart(objects, self.filled)))
    }
}

/// A table's objects without what changes by itself (the version of `nft`, the counters' values, elements that packets bring
/// and time takes), and apart from them the elements that change without the table: those of the sets whose names begin with `filled`.
pub(super) fn apart(mut objects: Vec<Value>, filled: &str) -> Listing {
    objects.retain(|o| o.get("metainfo").is_none());
    let mut elements = Vec::new();
    for object in objects.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(Value::Object(counter)) = object.get_mut("counter") {
            counter.remove("packets");
            counter.remove("bytes");
        }
        let Some(Value::Object(set)) = object.get_mut("set") else { continue };
        if set.contains_key("timeout") {
            set.remove("elem");
        }
        if set.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with(filled))
            && let Some(Value::Array(of_set)) = set.remove("elem")
        {
            elements.extend(of_set);
        }
    }
    (objects, elements)
}

fn forget(record: &Path) -> Result<(), NftError> {
    match fs::remove_file(record) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NftError::Record { path: record.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Atomically: a reader sees the old record or the new one.
fn write(path: &Path, record: &Record) -> Result<(), NftError> {
    let fail = |source| NftError::Record { path: path.to_owned(), source };
    let text = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
    let temporary = path.with_extension("json.tmp");
    fs::write(&temporary, text).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}
