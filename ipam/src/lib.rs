//! Addresses for the pods of one node, kept on disk so that a crash at any write leaves a state that opens.
//!
//! Owns one folder (`/run/wg-overlay/ipam`): who holds which address, and where each range was left off. Knows
//! nothing of links, namespaces or the CNI, so that the laws of allocation can be tested without a kernel.
//!
//! Every record is a symlink, because a symlink appears together with its content in one system call:
//!
//! | entry | points to | says |
//! |---|---|---|
//! | `addresses/10.244.1.7` | `CONTAINER_ID:IFNAME` | this address is taken |
//! | `holders/CONTAINER_ID:IFNAME` | `10.244.1.7,fd00::7` | this reservation is complete |
//! | `cursor/10.244.1.0_24` | `10.244.1.7` | the last address that was given out |
//! | `lock`, `attach.lock` | - | files for `flock` |
//!
//! [`Store::reserve`] writes the addresses first and the holder last, [`Store::release`] removes the holder first:
//! a crash between two writes leaves nothing but addresses without a holder, which [`Store::gc`] removes.
//! Entries that this crate did not write are left alone, and an address they cover is never given out.

mod disk;
mod holder;
mod lock;
mod range;
mod store;

pub use holder::{Holder, HolderError};
pub use lock::AttachLock;
pub use range::{Range, RangeError};
pub use store::{IpamError, Reservation, Store};
