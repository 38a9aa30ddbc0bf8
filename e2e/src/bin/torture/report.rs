//! What was tried and what was lost, item by item.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One claim and its count.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// PART: what was counted.
    pub item: String,
    /// How many.
    pub tried: u64,
    /// How many of them were lost, or not as they should be.
    pub lost: u64,
    /// Of what.
    pub unit: &'static str,
    /// Where the part's choices came from.
    pub seed: u64,
    /// Nothing was lost, something was tried, and the control says that it would have been seen.
    pub holds: bool,
    /// Why nothing is claimed, or what was found besides.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Writes `report.json`.
pub fn write(out: &Path, items: &[Item]) -> Result<()> {
    let path = out.join("report.json");
    let text = serde_json::to_string_pretty(items)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// The same for a person.
pub fn table(items: &[Item]) -> String {
    let width = items.iter().map(|item| item.item.len()).max().unwrap_or_default();
    let mut text = format!("{:width$} {:>9} {:>7} {:8} HOLDS\n", "ITEM", "TRIED", "LOST", "UNIT");
    for Item { item, tried, lost, unit, holds, note, .. } in items {
        let holds = if *holds { "yes" } else { "NO" };
        let note = note.lines().next().unwrap_or_default();
        // Writing to a String does not fail.
        let _written = writeln!(text, "{item:width$} {tried:>9} {lost:>7} {unit:8} {holds:5} {note}");
    }
    text
}
