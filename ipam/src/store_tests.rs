//! The laws of the store: it agrees with a naive model, and survives a stop before any write.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn range(prefix: &str) -> Range {
    Range::new(prefix.parse().unwrap()).unwrap()
}

/// Six addresses and two: the second fills up first.
fn two_families() -> [Range; 2] {
    [range("10.0.0.0/29"), range("fd00::/126")]
}

fn holder(n: u8) -> Holder {
    Holder::new(&format!("pod{n}"), "eth0").unwrap()
}

fn store() -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path().join("ipam"));
    (folder, store)
}

/// What is taken on disk, whoever holds it.
fn taken(store: &Store) -> usize {
    store.links("addresses").unwrap().len()
}

fn assert_consistent(store: &Store) {
    let held: Vec<IpAddr> = store.list().unwrap().into_iter().flat_map(|r| r.addresses).collect();
    let mut unique = held.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), held.len(), "an address has two holders");
    for reservation in store.list().unwrap() {
        for address in reservation.addresses {
            let owner = read_link(&store.address_path(address)).unwrap();
            assert_eq!(owner, Some(reservation.holder.to_string()), "{address}");
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Reserve(u8),
    Release(u8),
    Keep(Vec<u8>),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..12u8).prop_map(Action::Reserve),
        3 => (0..12u8).prop_map(Action::Release),
        1 => proptest::collection::vec(0..12u8, 0..8).prop_map(Action::Keep),
    ]
}

/// Who holds what, and for each range the last address given out: found by trying one after the other.
#[derive(Default)]
struct Model {
    held: BTreeMap<Holder, Vec<IpAddr>>,
    cursor: BTreeMap<IpNet, usize>,
}

impl Model {
    fn reserve(&mut self, holder: Holder, ranges: &[Range]) -> Option<Vec<IpAddr>> {
        if self.held.contains_key(&holder) {
            return None;
        }
        let mut got = Vec::new();
        for range in ranges {
            let hosts: Vec<IpAddr> = range
                .prefix()
                .hosts()
                .filter(|a| *a != range.gateway() && *a != range.prefix().network())
                .collect();
            let after = self.cursor.get(&range.prefix()).map_or(0, |at| at + 1);
            let free = |at: &usize| !self.held.values().any(|addresses| addresses.contains(&hosts[*at]));
            let at = (after..after + hosts.len()).map(|at| at % hosts.len()).find(free)?;
            self.cursor.insert(range.prefix(), at);
            got.push(hosts[at]);
        }
        self.held.insert(holder, got.clone());
        Some(got)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_agrees_with_the_model(actions in proptest::collection::vec(action(), 0..60)) {
        let (_folder, store) = store();
        let ranges = [range("10.0.0.0/29"), range("fd00::/125")];
        let mut model = Model::default();
        for action in actions {
            match action {
                Action::Reserve(n) => {
                    let got = store.reserve(&holder(n), &ranges).ok().map(|r| r.addresses);
                    prop_assert_eq!(got, model.reserve(holder(n), &ranges));
                }
                Action::Release(n) => {
                    let got = store.release(&holder(n)).unwrap().map(|r| r.addresses);
                    prop_assert_eq!(got, model.held.remove(&holder(n)));
                }
                Action::Keep(list) => {
                    store.gc(|r| list.iter().any(|n| holder(*n) == r.holder)).unwrap();
                    model.held.retain(|h, _| list.iter().any(|n| holder(*n) == *h));
                }
            }
            let listed: BTreeMap<_, _> = store.list().unwrap().into_iter().map(|r| (r.holder, r.addresses)).collect();
            prop_assert_eq!(&listed, &model.held);
            prop_assert_eq!(taken(&store), model.held.values().map(Vec::len).sum::<usize>());
        }
    }

    /// Some actions, then one that is stopped before its n-th write.
    #[test]
    fn a_crash_at_any_write_leaks_nothing(
        before in proptest::collection::vec(action(), 0..12),
        last in action(),
        writes in 0..14usize,
    ) {
        let (_folder, store) = store();
        let ranges = two_families();
        let run = |action: &Action| match action {
            Action::Reserve(n) => store.reserve(&holder(*n), &ranges).map(drop),
            Action::Release(n) => store.release(&holder(*n)).map(drop),
            Action::Keep(list) => store.gc(|r| list.iter().any(|n| holder(*n) == r.holder)).map(drop),
        };
        for action in &before {
            let _ = run(action);
        }
        store.disk.writes_left.set(Some(writes));
        let _ = run(&last);
        assert_consistent(&store);

        let opened = Store::new(store.folder.clone());
        assert_consistent(&opened);
        if let Action::Reserve(n) = last {
            // The runtime tries again with the same names, before anything is collected.
            let _ = opened.reserve(&holder(n), &ranges);
        }
        opened.gc(|_| true).unwrap();
        let held: usize = opened.list().unwrap().iter().map(|r| r.addresses.len()).sum();
        prop_assert_eq!(taken(&opened), held, "an address without a holder stays");
        opened.gc(|_| false).unwrap();
        prop_assert_eq!(taken(&opened), 0);
    }
}

#[test]
fn a_reserve_that_fails_at_one_write_takes_nothing() {
    for writes in 0.. {
        let (_folder, store) = store();
        store.disk.recovers.set(true);
        store.disk.writes_left.set(Some(writes));
        let reserved = store.reserve(&holder(1), &two_families());
        if store.disk.writes_left.get().is_some() {
            assert!(reserved.is_ok() && writes > 5, "every write has failed once");
            return;
        }
        assert!(matches!(reserved, Err(IpamError::Io { .. })), "{writes}: {reserved:?}");
        assert_eq!(taken(&store), 0, "write {writes}");
    }
}

#[test]
fn an_address_is_not_reused_until_the_range_has_been_walked() {
    let (_folder, store) = store();
    let ranges = [range("10.0.0.0/28")];
    let mut seen = Vec::new();
    for _ in 0..ranges[0].capacity() {
        let address = store.reserve(&holder(1), &ranges).unwrap().addresses[0];
        store.release(&holder(1)).unwrap();
        assert!(!seen.contains(&address), "{address} came back after {seen:?}");
        seen.push(address);
    }
    assert_eq!(store.reserve(&holder(1), &ranges).unwrap().addresses[0], seen[0]);
}

#[test]
fn a_second_reserve_fails_and_the_first_keeps_its_addresses() {
    let (_folder, store) = store();
    let first = store.reserve(&holder(1), &two_families()).unwrap();
    let second = store.reserve(&holder(1), &two_families());
    assert!(
        matches!(second, Err(IpamError::AlreadyReserved { addresses, .. }) if addresses == first.addresses)
    );
    assert_eq!(store.list().unwrap(), [first]);
}

#[test]
fn when_one_range_is_full_nothing_of_the_other_is_taken() {
    let (_folder, store) = store();
    store.reserve(&holder(1), &two_families()).unwrap();
    store.reserve(&holder(2), &two_families()).unwrap();
    let error = store.reserve(&holder(3), &two_families()).unwrap_err();
    assert_eq!(error.to_string(), "no address is free in fd00::/126: all 2 are held");
    assert_eq!(taken(&store), 4);
}

#[test]
fn a_full_range_counts_no_address_that_a_crash_left() {
    let (_folder, store) = store();
    let small = [range("10.0.0.0/30")];
    // One write: the address, and neither cursor nor holder.
    store.disk.writes_left.set(Some(1));
    store.reserve(&holder(1), &small).unwrap_err();
    store.disk.writes_left.set(None);
    assert_eq!(taken(&store), 1);
    store.reserve(&holder(2), &small).unwrap();
}

#[test]
fn foreign_entries_are_left_alone_and_hurt_nobody() {
    let (_folder, store) = store();
    store.reserve(&holder(1), &two_families()).unwrap();
    let foreign = [
        ("addresses/10.0.0.3", "a file where an address would be"),
        ("addresses/notes.txt", "x"),
        ("holders/notes", "x"),
        ("cursor/notes", "x"),
        ("notes", "x"),
    ];
    for (path, text) in foreign {
        fs::write(store.folder.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("nowhere at all", store.folder.join("addresses/10.0.0.4")).unwrap();

    let second = store.reserve(&holder(2), &two_families()).unwrap();
    assert_eq!(second.addresses[0].to_string(), "10.0.0.5");
    assert_eq!(store.list().unwrap().len(), 2);
    store.gc(|_| false).unwrap();
    assert_eq!(store.list().unwrap(), []);
    for (path, text) in foreign {
        assert_eq!(fs::read_to_string(store.folder.join(path)).unwrap(), text);
    }
    assert!(store.folder.join("addresses/10.0.0.4").is_symlink());
}

#[test]
fn another_spelling_of_a_held_address_frees_it_for_nobody() {
    let (_folder, store) = store();
    let held = store.reserve(&holder(1), &two_families()).unwrap().addresses[1];
    let spelled = store.folder.join("addresses").join(held.to_string().to_uppercase());
    std::os::unix::fs::symlink("pod9:eth0", &spelled).unwrap();
    store.gc(|_| true).unwrap();
    assert!(store.address_path(held).is_symlink() && spelled.is_symlink());
}

#[test]
fn a_foreign_file_in_a_holders_place_is_an_error_that_names_it() {
    let (_folder, store) = store();
    store.reserve(&holder(1), &two_families()).unwrap();
    fs::write(store.folder.join("holders/pod2:eth0"), "x").unwrap();
    let error = store.reserve(&holder(2), &two_families()).unwrap_err();
    assert!(error.to_string().contains("holders/pod2:eth0"), "{error}");
    assert_eq!(taken(&store), 2);
}

#[test]
fn a_spoiled_cursor_begins_at_the_start() {
    let (_folder, store) = store();
    store.reserve(&holder(1), &two_families()).unwrap();
    let cursor = store.cursor_path(two_families()[0].prefix());
    fs::remove_file(&cursor).unwrap();
    std::os::unix::fs::symlink("not an address", &cursor).unwrap();
    let second = store.reserve(&holder(2), &two_families()).unwrap();
    assert_eq!(second.addresses[0].to_string(), "10.0.0.3");
}

#[test]
fn a_release_leaves_an_address_that_has_another_holder() {
    let (_folder, store) = store();
    let address = store.reserve(&holder(1), &two_families()).unwrap().addresses[0];
    let entry = store.address_path(address);
    fs::remove_file(&entry).unwrap();
    std::os::unix::fs::symlink("pod9:eth0", &entry).unwrap();
    store.release(&holder(1)).unwrap();
    assert_eq!(read_link(&entry).unwrap().as_deref(), Some("pod9:eth0"));
}

#[test]
fn what_was_never_made_is_empty_and_is_not_made_by_looking() {
    let (_folder, store) = store();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.get(&holder(1)).unwrap(), None);
    assert_eq!(store.release(&holder(1)).unwrap(), None);
    assert_eq!(store.gc(|_| false).unwrap(), []);
    assert!(!store.folder.exists());
    assert!(matches!(store.reserve(&holder(1), &[]), Err(IpamError::NoRange(_))));
}

#[test]
fn collection_waits_for_no_attachment_and_runs_beside_none() {
    let (_folder, store) = store();
    let first = store.begin_attach().unwrap();
    let second = store.begin_attach().unwrap();
    drop(first);
    assert!(store.try_begin_collection().unwrap().is_none());
    drop(second);
    assert!(store.try_begin_collection().unwrap().is_some());
}

#[test]
fn thirty_processes_at_once_get_thirty_addresses() {
    let (_folder, store) = store();
    let folder = store.folder.clone();
    let got: Vec<IpAddr> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..30)
            .map(|n| {
                let folder = folder.clone();
                // A store of its own each: flock works between open files, as between processes.
                scope.spawn(move || Store::new(folder).reserve(&holder(n), &[range("10.0.0.0/24")]).unwrap())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap().addresses).collect()
    });
    let mut unique = got.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 30);
    assert_consistent(&store);
}

#[test]
fn a_64_with_ten_thousand_held_probes_as_few_names_as_an_empty_one() {
    let (_folder, store) = store();
    let wide = [range("fd00::/64")];
    for n in 0..10_000 {
        store.reserve(&Holder::new(&format!("p{n}"), "eth0").unwrap(), &wide).unwrap();
    }
    // Address, cursor (remove, write, rename) and holder: not one try more.
    store.disk.writes_left.set(Some(5));
    store.reserve(&holder(1), &wide).unwrap();
}
