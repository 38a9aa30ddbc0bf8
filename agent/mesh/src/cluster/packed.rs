//! Nodes in little memory: each record is one piece of text. A record of maps and strings takes four times as much, and is
//! read only when its Node changes, or when everything is decided anew.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::{Cluster, NodeRecord};
use crate::annotation::PREFIX;

/// The Nodes of the cluster by name, packed.
#[derive(Debug, Clone, Default)]
pub struct PackedView(BTreeMap<Box<str>, Packed>);

/// A record as text: the time of creation, then each list as the number of its texts and the texts, each after its length
/// in bytes, all numbers followed by a blank. An annotation's name is `/` and what follows our prefix, else `:` and the name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packed(Box<str>);

impl PackedView {
    /// Takes a Node's record, and tells whether it says anything new.
    pub fn insert(&mut self, name: &str, record: &NodeRecord) -> bool {
        let packed = Packed::new(record);
        match self.0.get_mut(name) {
            Some(held) if *held == packed => false,
            Some(held) => {
                *held = packed;
                true
            }
            None => self.0.insert(name.into(), packed).is_none(),
        }
    }

    /// Forgets a Node, and tells whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Whether there is no Node.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The Nodes that are not the same in both.
    pub fn differences(&self, other: &Self) -> BTreeSet<String> {
        let gone = other.0.keys().filter(|name| !self.0.contains_key(*name));
        let differ = self.0.iter().filter(|(name, packed)| other.0.get(*name) != Some(packed));
        gone.chain(differ.map(|(name, _)| name)).map(ToString::to_string).collect()
    }
}

impl Cluster for PackedView {
    fn record(&self, name: &str) -> Option<Cow<'_, NodeRecord>> {
        self.0.get(name).map(|packed| Cow::Owned(packed.unpack()))
    }

    fn records(&self) -> impl Iterator<Item = (&str, Cow<'_, NodeRecord>)> {
        self.0.iter().map(|(name, packed)| (&**name, Cow::Owned(packed.unpack())))
    }
}

impl Packed {
    fn new(record: &NodeRecord) -> Self {
        let NodeRecord { created, annotations, pod_cidrs, internal_ips, external_ips } = record;
        let mut text = format!("{created} ");
        let short = |name: &String| match name.strip_prefix(PREFIX) {
            Some(rest) => format!("/{rest}"),
            None => format!(":{name}"),
        };
        let annotations: Vec<_> =
            annotations.iter().flat_map(|(name, value)| [short(name), value.clone()]).collect();
        append(&mut text, annotations.iter());
        append(&mut text, pod_cidrs.iter());
        append(&mut text, internal_ips.iter());
        append(&mut text, external_ips.iter());
        Self(text.into())
    }

    fn unpack(&self) -> NodeRecord {
        let mut rest = &*self.0;
        let created = number(&mut rest);
        let mut annotations = texts(&mut rest).into_iter();
        NodeRecord {
            created,
            annotations: std::iter::from_fn(|| annotations.next().map(long).zip(annotations.next()))
                .collect(),
            pod_cidrs: texts(&mut rest),
            internal_ips: texts(&mut rest),
            external_ips: texts(&mut rest),
        }
    }
}

fn long(name: String) -> String {
    let (kind, rest) = name.split_at_checked(1).unwrap_or_default();
    if kind == "/" { format!("{PREFIX}{rest}") } else { rest.to_owned() }
}

fn append<'a>(to: &mut String, texts: impl Iterator<Item = &'a String> + Clone) {
    *to += &format!("{} ", texts.clone().count());
    for text in texts {
        *to += &format!("{} ", text.len());
        *to += text;
    }
}

fn texts(rest: &mut &str) -> Vec<String> {
    let count = number(rest);
    let take = |_| {
        let length = usize::try_from(number(rest)).unwrap_or_default();
        let (text, after) = rest.split_at_checked(length).unwrap_or_default();
        *rest = after;
        text.to_owned()
    };
    (0..count).map(take).collect()
}

fn number(rest: &mut &str) -> i64 {
    let (number, after) = rest.split_once(' ').unwrap_or_default();
    *rest = after;
    number.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    prop_compose! {
        fn record()(
            created: i64,
            annotations in btree_map(any::<String>(), any::<String>(), 0..4),
            [pod_cidrs, internal_ips, external_ips]: [Vec<String>; 3],
        ) -> NodeRecord {
            NodeRecord { created, annotations, pod_cidrs, internal_ips, external_ips }
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_and_only_the_same_is_nothing_new(first in record(), second in record()) {
            let mut view = PackedView::default();
            prop_assert!(view.insert("node", &first));
            prop_assert_eq!(&*view.record("node").unwrap(), &first);
            prop_assert!(!view.insert("node", &first.clone()));
            let before = view.clone();
            prop_assert_eq!(view.insert("node", &second), first != second);
            prop_assert_eq!(&*view.record("node").unwrap(), &second);
            prop_assert_eq!(view.differences(&before).is_empty(), first == second);
            prop_assert!(view.remove("node"));
            prop_assert_eq!(view.differences(&before), BTreeSet::from(["node".to_owned()]));
        }
    }
}
