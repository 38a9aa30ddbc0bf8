//! What can keep a device from starting.

use std::{io, path::PathBuf};

use crate::device::{MAX_MTU, MIN_MTU};

/// Why a user-space device did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name is no name for a network link (Linux `dev_valid_name`).
    #[error("device name {0:?}: expected 1 to 15 characters without '/', ':', '%' and blanks")]
    Name(String),
    /// The MTU is outside of what the device can carry.
    #[error("MTU {0} of the user-space device: expected {MIN_MTU} to {MAX_MTU}")]
    Mtu(u16),
    /// Another process holds the device of this name.
    #[error(
        "device {name}: another process runs it (holder of {holder}); stop that one, or delete \
         the link with `ip link del {name}`"
    )]
    AlreadyRunning {
        /// Name of the link.
        name: String,
        /// The object that the other process holds: the link or the socket.
        holder: String,
    },
    /// A link of this name exists and is no TUN link.
    #[error("device {0}: a link of this name exists and is not a TUN link; remove or rename it")]
    NotTun(String),
    /// The TUN link could not be opened.
    #[error(
        "open TUN link {name} on /dev/net/tun (needs the module tun, CAP_NET_ADMIN, and a container needs the file)"
    )]
    Tun {
        /// Name of the link.
        name: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A socket could not be made.
    #[error("create the socket {path}")]
    Socket {
        /// Where the socket was to be.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Changes of the link cannot be followed.
    #[error("follow the changes of link {name} over netlink")]
    Watch {
        /// Name of the link.
        name: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The socket of the tunnel or a thread could not be had.
    #[error("start WireGuard on link {name}")]
    Start {
        /// Name of the link.
        name: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}
