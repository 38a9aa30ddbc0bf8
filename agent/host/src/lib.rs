//! The kernel of a node: read into [`wg_overlay_mesh::ObservedState`], and changed by the steps of a plan.
//!
//! [`Host`] observes and applies, [`Events`] tell when to observe again. Nothing here decides: which steps there are,
//! and in which order, is `wg_overlay_mesh::plan`'s. It stands apart from the agent so that the kernel's manners
//! (netlink, UAPI, nft, sysctl) are tested in a network namespace without an API server.

mod apply;
mod cache;
mod detach;
mod device;
mod error;
mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod key;
mod links;
mod netlink;
mod nft;
mod port;
mod routes;
mod scope;
mod sysctl;
mod wireguard;

pub use device::{DeviceError, DeviceMode, DeviceProgram};
pub use error::{HostError, StepError};
pub use events::{Change, Events};
pub use host::{Host, HostConfig};
pub use key::PrivateKey;
pub use nft::{Counters, Nft, NftError, ObservedRules, ProgramError};
pub use port::holder as udp_port_holder;
pub use scope::Scope;
pub use sysctl::Shortcoming;
