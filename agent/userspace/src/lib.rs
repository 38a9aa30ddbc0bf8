//! A WireGuard device in user space, for kernels that have none.
//!
//! Owns one TUN link, the UDP sockets of its tunnel, and the UAPI socket through which `wg` and
//! wireguard-control read and configure it. The protocol of a peer (handshakes, sessions, timers) is
//! gotatun's, the way of the packets its own. It decides nothing about peers, adds no address and no route, and does not raise
//! the link: the agent treats this device as it treats the kernel's.
//!
//! [`standby`] is the other thing it does: it sleeps, small, until a device is asked for, and then runs one as a process.
//!
//! It is a crate of its own because it runs as a process of its own, so that a restart of the
//! agent never touches a tunnel.
//!
//! ```text
//!  link wgo0 ── tun ──► engine ──► udp ── underlay        link ── MTU changes, deletion
//!            ◄─ tun ◄── engine ◄── udp ──                 uapi ── /var/run/wireguard/wgo0.sock
//! ```

mod device;
mod engine;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod link;
mod recycle;
mod standby;
mod tun;
mod uapi;
mod udp;

pub use device::{DeviceConfig, MAX_MTU, MIN_MTU, run};
pub use error::DeviceError;
pub use recycle::Recycling;
pub use standby::{Standby, standby};
