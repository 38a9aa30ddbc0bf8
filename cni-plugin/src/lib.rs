//! The CNI plugin of wg-overlay, and what the node agent shares with it.
//!
//! Owns the pods' links and the reservations of their addresses. The bridge, its addresses, the boot mark and the
//! conflist are the agent's; the plugin reads the mark and finds the bridge. It runs as one short process for each call,
//! without threads or an async runtime, and needs no running agent.
//!
//! [`collect`] stands here and not in the agent, so that the rule for what is left over exists once: the CNI's GC and
//! the agent (most runtimes never call GC) both use it. So do [`ports`], which the agent fills its table with.

mod collect;
#[cfg(fuzzing)]
pub mod fuzzing;
mod names;
mod netlink;
mod network;
pub mod nfnetlink;
pub mod plugin;
mod ports;

pub use collect::{CollectError, Collected, Collection, collect, holders_outside, store};
pub use names::{BRIDGE, Mac, POD_LINK_PREFIX, pod_link_alias, pod_link_macs, pod_link_name, pod_link_owner};
pub use netlink::NetlinkError;
pub use network::{NETWORK_FILE, Network, NetworkError};
pub use ports::{PodPort, PortsError, ports};
pub use wg_overlay_ipam::{Holder, IpamError, Range, Reservation, Store};
