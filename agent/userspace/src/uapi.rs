//! WireGuard's configuration protocol for user-space devices, as `wg` and wireguard-control speak
//! it: <https://www.wireguard.com/xplatform/#configuration-protocol>.
//!
//! gotatun has a UAPI of its own that is not used, because it departs from the protocol:
//! - an update of a peer throws its session and counters away, so a changed keepalive or allowed
//!   IP interrupts traffic;
//! - an allowed IP set on a second peer stays listed on the first, and goes back at its next update;
//! - a peer set before the private key panics, and a private key of zeros is used as a key;
//! - a listen port that is taken leaves the device without any socket;
//! - what it cannot read is answered by a closed connection instead of an errno, and logged whole,
//!   private key included.

mod control;
mod reply;
pub(crate) mod request;
mod socket;

pub(crate) use control::Control;
pub(crate) use socket::{UapiSocket, claim};

use request::Request;
use rustix::io::Errno;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// A request and where its answer goes.
pub(crate) struct Call {
    request: Request,
    answer: oneshot::Sender<Zeroizing<String>>,
}

/// The last line of every answer, with the blank line that ends it. An error is a negative number,
/// as wireguard-go sends it (device/uapi.go, ipc/uapi_linux.go) and `wg` reads it.
fn errno_line(result: Result<(), Errno>) -> String {
    let number = result.err().map_or(0, |errno| -errno.raw_os_error());
    format!("errno={number}\n\n")
}
