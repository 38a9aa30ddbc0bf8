//! The folder of reservations, whoever wrote it. Each line is a symlink: a letter for the folder, its name, and where it
//! points, parted by blanks.

#![no_main]

use std::{collections::BTreeSet, fs, net::IpAddr, os::unix::fs::symlink, path::Path};

use libfuzzer_sys::fuzz_target;
use wg_overlay_ipam::{Holder, Range, Store};

fuzz_target!(|text: &str| {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["addresses", "cursor", "holders"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    for line in text.lines().take(64) {
        let _ = link(folder.path(), line);
    }
    work(folder.path());
});

/// Makes an entry, where the file system takes its name.
fn link(folder: &Path, line: &str) -> Option<()> {
    let (letter, rest) = line.split_once(' ')?;
    let (name, target) = rest.split_once(' ')?;
    let kind = match letter {
        "a" => "addresses",
        "c" => "cursor",
        "h" => "holders",
        _ => return None,
    };
    symlink(target, Some(folder.join(kind).join(name)).filter(|_| !name.contains('/'))?).ok()
}

fn work(folder: &Path) {
    let store = Store::new(folder);
    let ranges = ["10.244.1.0/29", "fd00:244:0:1::/125"]
        .map(|net| Range::new(net.parse().expect("a net")).expect("a range"));
    for container in ["one", "two"] {
        let (held, foreign) = (held(folder, &store), foreign(folder));
        let holder = Holder::new(container, "eth0").expect("a holder");
        // Nothing is free, or there is a reservation: the others keep what they have all the same.
        let new =
            store.reserve(&holder, &ranges).map(|reservation| reservation.addresses).unwrap_or_default();
        for (address, range) in new.iter().zip(&ranges) {
            assert!(
                range.prefix().contains(address) && *address != range.gateway(),
                "{address} is none of {range}'s"
            );
            assert!(!held.iter().any(|(_, other)| other == address), "{address} is another's");
            assert!(!foreign.contains(&address.to_string()), "{address} is not ours to give");
        }
        keeps(folder, &store, &held, &foreign);
        store.gc(|_| true).expect("it collects");
        keeps(folder, &store, &held, &foreign);
    }
    let foreign = foreign(folder);
    store.gc(|_| false).expect("it collects");
    assert_eq!(store.list().expect("it lists"), [], "all is released");
    keeps(folder, &store, &BTreeSet::new(), &foreign);
}

type Held = BTreeSet<(String, IpAddr)>;

fn keeps(folder: &Path, store: &Store, before: &Held, foreign_before: &BTreeSet<String>) {
    let lost: Vec<_> = before.difference(&held(folder, store)).cloned().collect();
    assert!(lost.is_empty(), "{lost:?} lost what they held");
    assert_eq!(foreign(folder), *foreign_before, "what is not ours is left alone");
}

/// Who has which address, by both of its entries.
fn held(folder: &Path, store: &Store) -> Held {
    let all = store.list().expect("it lists whatever is there").into_iter();
    let pairs =
        all.flat_map(|one| one.addresses.into_iter().map(move |address| (one.holder.to_string(), address)));
    let points = |(holder, address): &(String, IpAddr)| {
        fs::read_link(folder.join("addresses").join(address.to_string()))
            .is_ok_and(|target| target.as_os_str() == holder.as_str())
    };
    pairs.filter(points).collect()
}

/// The addresses' entries that the store would not write.
fn foreign(folder: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(folder.join("addresses")).expect("a folder").map(|entry| entry.expect("an entry"));
    let is_ours = |name: &str, target: &Path| {
        name.parse::<IpAddr>().is_ok_and(|address| address.to_string() == name)
            && target.to_str().is_some_and(|target| target.parse::<Holder>().is_ok())
    };
    let names = entries.map(|entry| {
        (entry.file_name().into_string().expect("text"), fs::read_link(entry.path()).expect("a link"))
    });
    names.filter(|(name, target)| !is_ours(name, target)).map(|(name, _)| name).collect()
}
