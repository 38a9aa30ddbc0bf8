//! The TUN link: packets between the kernel's stack and the protocol engine.
//!
//! Owns the open link and its offloads: the kernel hands TCP and UDP over in segments of up to
//! 64 KiB, cut here to the MTU (GSO), and received packets of one flow are joined before they go
//! to the kernel (GRO). Both save a walk through the kernel's stack for each packet, which is what
//! limits a user-space tunnel. It does not know peers.

use std::{io, sync::Arc};

use rustix::io::Errno;
use tokio::sync::watch;
use tun_rs::{AsyncDevice, DeviceBuilder};

pub(crate) use self::{
    reader::{MAX_SEGMENTS, TunReader},
    writer::TunWriter,
};
use crate::error::DeviceError;

mod reader;
mod writer;

/// Packets that wait while this process has no processor: with TUN's default of 500, a node whose processors are all busy
/// loses packets after some tenths of a second. A flood of full packets waits no longer than 3 MB take.
const QUEUE: u32 = 2048;

/// Opens and so creates the link `name`, down, with `mtu`. It lives as long as what is returned.
pub(crate) fn open(name: &str, mtu: u16) -> Result<AsyncDevice, DeviceError> {
    DeviceBuilder::new()
        .name(name)
        .mtu(mtu)
        .tx_queue_len(QUEUE)
        .offload(true)
        .enable(false)
        .build_async()
        .map_err(|source| refused(name, source))
}

/// Splits the open link into its two halves; `mtu` follows the link's MTU.
pub(crate) fn split(tun: AsyncDevice, name: &str, mtu: watch::Receiver<u16>) -> (TunReader, TunWriter) {
    let tun = Arc::new(tun);
    (TunReader::new(Arc::clone(&tun), mtu), TunWriter::spawn(tun, name.to_owned()))
}

/// TUNSETIFF (drivers/net/tun.c): EBUSY where another descriptor holds the link, EINVAL where the
/// link is of another kind or was made with other flags.
fn refused(name: &str, source: io::Error) -> DeviceError {
    match Errno::from_io_error(&source) {
        Some(Errno::BUSY) => {
            DeviceError::AlreadyRunning { name: name.to_owned(), holder: format!("link {name}") }
        }
        Some(Errno::INVAL) => DeviceError::NotTun(name.to_owned()),
        _ => DeviceError::Tun { name: name.to_owned(), source },
    }
}
