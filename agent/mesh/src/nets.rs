//! A few prefixes. Nearly every peer has one of a family, in two states at once, and a tree of two takes five times as much
//! memory as a list of them.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;

/// A set of prefixes in little memory: sorted, each once.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct IpNets(Vec<IpNet>);

impl IpNets {
    /// Whether this prefix is one of them.
    pub fn contains(&self, net: &IpNet) -> bool {
        self.0.binary_search(net).is_ok()
    }

    /// Adds a prefix, and tells whether it is new.
    pub fn insert(&mut self, net: IpNet) -> bool {
        let place = self.0.binary_search(&net).err();
        if let Some(at) = place {
            self.0.reserve_exact(1);
            self.0.insert(at, net);
        }
        place.is_some()
    }

    /// Removes a prefix, and tells whether it was there.
    pub fn remove(&mut self, net: &IpNet) -> bool {
        self.0.binary_search(net).map(|at| self.0.remove(at)).is_ok()
    }

    /// Whether the other has all of them.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).next().is_none()
    }

    /// Those that the other has not.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a IpNet> {
        self.iter().filter(|net| !other.contains(net))
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpNet> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same as a tree.
    pub fn to_set(&self) -> BTreeSet<IpNet> {
        self.iter().copied().collect()
    }
}

impl fmt::Debug for IpNets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self).finish()
    }
}

impl FromIterator<IpNet> for IpNets {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        let mut nets: Vec<IpNet> = nets.into_iter().collect();
        nets.sort_unstable();
        nets.dedup();
        nets.shrink_to_fit();
        Self(nets)
    }
}

impl Extend<IpNet> for IpNets {
    fn extend<T: IntoIterator<Item = IpNet>>(&mut self, nets: T) {
        for net in nets {
            self.insert(net);
        }
    }
}

impl<const N: usize> From<[IpNet; N]> for IpNets {
    fn from(nets: [IpNet; N]) -> Self {
        nets.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a IpNets {
    type Item = &'a IpNet;
    type IntoIter = std::slice::Iter<'a, IpNet>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        (0..6u8, 22..25u8)
            .prop_map(|(n, length)| format!("10.0.{n}.0/{length}").parse::<IpNet>().unwrap().trunc())
    }

    proptest! {
        #[test]
        fn it_does_as_a_tree_does(steps in vec((any::<bool>(), net()), 0..12), other in vec(net(), 0..6)) {
            let (mut nets, mut model) = (IpNets::default(), BTreeSet::new());
            for (adds, net) in steps {
                let told = if adds { nets.insert(net) } else { nets.remove(&net) };
                let wanted = if adds { model.insert(net) } else { model.remove(&net) };
                prop_assert_eq!(told, wanted);
                prop_assert_eq!(nets.contains(&net), adds);
            }
            prop_assert_eq!(nets.to_set(), model.clone());
            prop_assert_eq!((nets.len(), nets.is_empty()), (model.len(), model.is_empty()));
            prop_assert_eq!(&nets, &model.iter().rev().copied().collect());
            let (others, other_model): (IpNets, BTreeSet<_>) = (other.iter().copied().collect(), other.into_iter().collect());
            prop_assert_eq!(nets.is_subset(&others), model.is_subset(&other_model));
            let differ: Vec<_> = nets.difference(&others).collect();
            prop_assert_eq!(differ, model.difference(&other_model).collect::<Vec<_>>());
            nets.extend(other_model.iter().copied());
            prop_assert_eq!(nets.to_set(), &model | &other_model);
        }
    }
}
