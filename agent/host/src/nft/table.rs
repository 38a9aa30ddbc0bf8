//! Our own table: applied in one transaction, recorded, compared.
//!
//! The kernel gives every rule, set and chain a handle that is never used again, so a listing that is equal to the
//! recorded one, handles included, is of the very objects that were applied.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wg_overlay_mesh::{ObservedFirewall, TABLE};

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

pub(super) fn observe(record: &Path) -> Result<Option<ObservedFirewall>, NftError> {
    let Some(mut listing) = listing()? else { return Ok(None) };
    let endpoints = take_endpoints(&mut listing)?;
    // A record that is missing or torn only means that the table is applied once more.
    let applied = fs::read(record).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    let ruleset = applied.filter(|r| r.listing == listing).map(|r| r.ruleset).unwrap_or_default();
    Ok(Some(ObservedFirewall { ruleset, endpoints }))
}

/// Replaces the table and the endpoints in one transaction; the counters go on from where they are said to be. `generation`
/// tells how many transactions there have been: where another's came between ours and the listing of it, nothing is
/// recorded, or its work would pass for ours, and the next observation finds a table to be applied again.
pub(super) fn set(
    record: &Path,
    ruleset: &str,
    endpoints: &BTreeSet<SocketAddr>,
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
    script.push_str(&elements(endpoints));
    let before = generation();
    run("nft", &["-f", "-"], Some(&script))?;
    let mut listing = listing()?.unwrap_or_default();
    if before.is_some_and(|before| generation() != Some(before.wrapping_add(1))) {
        return forget(record);
    }
    take_endpoints(&mut listing)?;
    write(record, &Record { ruleset: ruleset.to_owned(), listing })
}

pub(super) fn remove(record: &Path) -> Result<(), NftError> {
    run("nft", &["-f", "-"], Some(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")))?;
    forget(record)
}

fn forget(record: &Path) -> Result<(), NftError> {
    match fs::remove_file(record) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NftError::Record { path: record.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

fn listing() -> Result<Option<Vec<Value>>, NftError> {
    Ok(list_existing(&["table", "inet", TABLE])?.map(lasting))
}

/// The table's objects without what changes by itself: the version of `nft` and the counters' values.
pub(super) fn lasting(mut objects: Vec<Value>) -> Vec<Value> {
    objects.retain(|o| o.get("metainfo").is_none());
    for counter in objects.iter_mut().filter_map(|o| o.get_mut("counter")).filter_map(Value::as_object_mut) {
        counter.remove("packets");
        counter.remove("bytes");
    }
    objects
}

/// Takes the elements of the endpoint sets out of a listing.
pub(super) fn take_endpoints(listing: &mut [Value]) -> Result<BTreeSet<SocketAddr>, NftError> {
    let mut endpoints = BTreeSet::new();
    for set in listing.iter_mut().filter_map(|o| o.get_mut("set")).filter_map(Value::as_object_mut) {
        if set.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with("endpoints"))
            && let Some(Value::Array(elements)) = set.remove("elem")
        {
            for element in &elements {
                endpoints.insert(endpoint(element).ok_or_else(|| NftError::Answer {
                    program: "nft",
                    arguments: format!("-j list table inet {TABLE}"),
                    expected: "an address and a port as the endpoint sets' elements",
                    source: None,
                })?);
            }
        }
    }
    Ok(endpoints)
}

fn endpoint(element: &Value) -> Option<SocketAddr> {
    let [address, port] = element.get("concat")?.as_array()?.as_slice() else { return None };
    let address: IpAddr = address.as_str()?.parse().ok()?;
    Some(SocketAddr::new(address, u16::try_from(port.as_u64()?).ok()?))
}

/// Commands that add the elements, one for each family that has any.
fn elements(endpoints: &BTreeSet<SocketAddr>) -> String {
    let mut script = String::new();
    for (set, v4) in [("endpoints4", true), ("endpoints6", false)] {
        let of_family = endpoints.iter().filter(|e| e.is_ipv4() == v4);
        let list: Vec<String> = of_family.map(|e| format!("{} . {}", e.ip(), e.port())).collect();
        if !list.is_empty() {
            // Writing into a String can't fail.
            let _ = writeln!(script, "add element inet {TABLE} {set} {{ {} }}", list.join(", "));
        }
    }
    script
}

/// Atomically: a reader sees the old record or the new one.
fn write(path: &Path, record: &Record) -> Result<(), NftError> {
    let fail = |source| NftError::Record { path: path.to_owned(), source };
    let text = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
    let temporary = path.with_extension("json.tmp");
    fs::write(&temporary, text).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}
