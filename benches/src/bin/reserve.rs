//! `reserve FOLDER PREFIX HOLDER` takes one address as the plugin's ADD does, and nothing else: a process for each call,
//! as host-local is one. `reserve FOLDER PREFIX --fill COUNT` takes that many in one go.

use anyhow::{Context as _, Result, ensure};
use wg_overlay_ipam::{Holder, Range, Store};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
    ensure!(words.len() >= 3, "usage: reserve FOLDER PREFIX HOLDER | --fill COUNT");
    let store = Store::new(word(0));
    let range = Range::new(word(1).parse().context("PREFIX")?).context("PREFIX")?;
    if word(2) == "--fill" {
        let count: u32 = word(3).parse().context("COUNT")?;
        return (0..count).try_for_each(|at| take(&store, &range, &format!("filled-{at}")));
    }
    take(&store, &range, word(2))
}

fn take(store: &Store, range: &Range, container: &str) -> Result<()> {
    let holder: Holder = format!("{container}:eth0").parse().context("HOLDER")?;
    store.reserve(&holder, std::slice::from_ref(range)).map(drop).context("reserve")
}
