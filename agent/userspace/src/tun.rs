//! The TUN link: packets between the kernel's stack and the protocol.
//!
//! Owns the open link and its offloads: the kernel hands TCP and UDP over in segments of up to
//! 64 KiB, cut here to the MTU (GSO), and received packets of one flow are joined before they go
//! to the kernel (GRO). Both save a walk through the kernel's stack for each packet, which is what
//! limits a user-space tunnel. It does not know peers.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::io::Errno;
use tun_rs::{DeviceBuilder, SyncDevice};

pub(crate) use self::{cut::Cutter, join::Joiner};
use crate::error::DeviceError;

mod checksum;
mod cut;
mod headers;
pub(crate) mod join;

/// Packets that wait while this process has no processor: with TUN's default of 500, a node whose processors are all busy
/// loses packets after some tenths of a second. A flood of full packets waits no longer than 3 MB take.
const QUEUE: u32 = 2048;

/// The largest read: virtio's header and the largest packet that the kernel hands over.
pub(crate) const READ_SIZE: usize = headers::VIRTIO + u16::MAX as usize;

/// The open link. It lives as long as this.
pub(crate) struct Tun {
    device: SyncDevice,
}

impl Tun {
    /// Opens and so creates the link `name`, down, with `mtu`.
    pub(crate) fn open(name: &str, mtu: u16) -> Result<Self, DeviceError> {
        let open = || {
            let device = DeviceBuilder::new()
                .name(name)
                .mtu(mtu)
                .tx_queue_len(QUEUE)
                .offload(true)
                .enable(false)
                .build_sync()?;
            device.set_nonblocking(true)?;
            Ok(Self { device })
        };
        open().map_err(|source| refused(name, source))
    }

    /// Whether the kernel takes UDP datagrams joined (Linux 6.2).
    pub(crate) fn joins_datagrams(&self) -> bool {
        self.device.udp_gso()
    }

    /// One read: virtio's header and a packet, its size in bytes. `WOULDBLOCK` where none waits.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(self, buffer)
    }

    /// One packet in pieces, virtio's header the first.
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        rustix::io::writev(self, pieces).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
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
