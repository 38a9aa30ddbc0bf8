//! What is left over of pods that are gone: their links and their addresses.
//!
//! The kernel removes a veth pair with either of its namespaces, so a reservation without a link is one whose pod is
//! gone, unless an attachment is just being made. [`Store::begin_attach`]'s lock tells that: every ADD holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ipnet::IpNet;
use thiserror::Error;
use wg_overlay_ipam::{Holder, IpamError, Reservation, Store};

use crate::{
    names::{pod_link_name, pod_link_owner},
    netlink::{Link, Netlink, NetlinkError},
};

/// What came of a collection.
#[derive(Debug)]
pub enum Collection {
    /// An ADD or another collection is under way: nothing was done, try again later.
    Busy,
    /// It ran.
    Done(Collected),
}

/// What a collection removed.
#[derive(Debug, Default)]
pub struct Collected {
    /// Names of the links that were deleted.
    pub links: Vec<String>,
    /// The reservations that were released.
    pub reservations: Vec<Reservation>,
}

/// A collection that did not get through; what it removed before stays removed.
#[derive(Debug, Error)]
pub enum CollectError {
    /// Addresses.
    #[error("could not collect the addresses of pods that are gone")]
    Ipam(#[source] IpamError),
    /// Links.
    #[error("could not collect the links of pods that are gone")]
    Netlink(#[source] NetlinkError),
}

/// The store of reservations under a state folder.
pub fn store(state_dir: &Path) -> Store {
    Store::new(state_dir.join("ipam"))
}

/// Releases reservations whose link is gone, and deletes links of ours that no reservation or no complete ADD stands
/// behind. With `keep`, goes on to remove every attachment that it doesn't list.
///
/// To be called in the host's network namespace. A link that can't be deleted keeps its addresses; the others are still
/// collected, and then that is the error.
pub fn collect(state_dir: &Path, keep: Option<&BTreeSet<Holder>>) -> Result<Collection, CollectError> {
    let store = store(state_dir);
    let Some(_alone) = store.try_begin_collection().map_err(CollectError::Ipam)? else {
        return Ok(Collection::Busy);
    };
    let mut netlink = Netlink::open().map_err(CollectError::Netlink)?;
    let by_name: BTreeMap<String, Holder> = store
        .list()
        .map_err(CollectError::Ipam)?
        .into_iter()
        .map(|reservation| (pod_link_name(&reservation.holder), reservation.holder))
        .collect();

    let mut collected = Collected::default();
    let mut living = BTreeSet::new();
    let mut failure = None;
    for link in netlink.links().map_err(CollectError::Netlink)? {
        let Some((holder, complete)) = owner(&link, &by_name) else { continue };
        let kept = keep.is_none_or(|keep| keep.contains(&holder));
        if complete && kept && by_name.contains_key(&pod_link_name(&holder)) {
            living.insert(holder);
            continue;
        }
        match netlink.delete_link(&link) {
            Ok(()) => collected.links.push(link.name),
            Err(error) => {
                failure.get_or_insert(error);
                living.insert(holder);
            }
        }
    }
    let released = store.gc(|reservation| living.contains(&reservation.holder));
    collected.reservations = released.map_err(CollectError::Ipam)?;
    failure.map_or(Ok(Collection::Done(collected)), |error| Err(CollectError::Netlink(error)))
}

/// The reservations with an address outside `pod_cidrs`: pods from before the node's PodCIDR changed.
pub fn holders_outside(state_dir: &Path, pod_cidrs: &[IpNet]) -> Result<Vec<Reservation>, IpamError> {
    let mut outside = store(state_dir).list()?;
    outside.retain(|reservation| {
        reservation.addresses.iter().any(|address| !pod_cidrs.iter().any(|cidr| cidr.contains(address)))
    });
    Ok(outside)
}

/// Whose link it is, if it is a pod's, and whether its ADD came to the end: the mark is what ADD sets last. An unmarked
/// link is ours only where a reservation stands behind its very name.
fn owner(link: &Link, by_name: &BTreeMap<String, Holder>) -> Option<(Holder, bool)> {
    match &link.alias {
        Some(alias) => pod_link_owner(alias).map(|holder| (holder, true)),
        None => by_name.get(&link.name).map(|holder| (holder.clone(), false)),
    }
}
