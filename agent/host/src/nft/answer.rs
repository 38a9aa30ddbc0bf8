//! What the kernel answers about nftables, read from its messages (include/uapi/linux/netfilter/nf_tables.h).

use std::{ffi::CStr, net::IpAddr, time::Duration};

use netlink_packet_core::NlasIterator;
use wg_overlay_cni::nfnetlink::{DATA_VALUE, SET_ELEM_KEY, SET_ELEM_LIST_ELEMENTS};
use wg_overlay_mesh::UNANSWERED;

use crate::events::{attribute, nested};

/// How many transactions there have been.
pub(super) fn generation_id(payload: &[u8]) -> Option<u32> {
    attribute(payload, NFTA_GEN_ID)?.try_into().ok().map(u32::from_be_bytes)
}

/// The name and value of a counter that the kernel tells of.
pub(super) fn counter(payload: &[u8]) -> Option<(String, (u64, u64))> {
    let name = CStr::from_bytes_with_nul(attribute(payload, NFTA_OBJ_NAME)?).ok()?;
    let data = attribute(payload, NFTA_OBJ_DATA)?;
    let number = |kind| Some(u64::from_be_bytes(nested(data, kind)?.try_into().ok()?));
    let value = (number(NFTA_COUNTER_PACKETS)?, number(NFTA_COUNTER_BYTES)?);
    Some((name.to_str().ok()?.to_owned(), value))
}

/// Hands over the key and the attributes of each element that the kernel tells of.
pub(super) fn each_element(payload: &[u8], mut take: impl FnMut(&[u8], &[u8])) {
    let list = attribute(payload, SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    for element in NlasIterator::new(list).map_while(Result::ok) {
        let key = nested(element.value(), SET_ELEM_KEY).and_then(|key| nested(key, DATA_VALUE));
        if let Some(key) = key {
            take(key, element.value());
        }
    }
}

/// An element's address, and its age.
pub(super) fn unanswered_since(key: &[u8], element: &[u8]) -> Option<(IpAddr, Duration)> {
    let v4 = || <[u8; 4]>::try_from(key).map(IpAddr::from);
    let address = <[u8; 16]>::try_from(key).map(IpAddr::from).or_else(|_| v4()).ok()?;
    let left = u64::from_be_bytes(nested(element, NFTA_SET_ELEM_EXPIRATION)?.try_into().ok()?);
    Some((address, UNANSWERED.saturating_sub(Duration::from_millis(left))))
}

const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_GEN_ID: u16 = 1;
/// Milliseconds.
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
