//! Packets from the kernel to the engine: one read gives up to 64 KiB of one flow, cut to the MTU.

use std::{io, sync::Arc};

use gotatun::{
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, MtuWatcher},
};
use rustix::io::Errno;
use tokio::sync::watch;
use tun_rs::{AsyncDevice, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// Most segments of one read. The link is told (`gso_max_segs`), so that the kernel itself cuts
/// what has more, as TCP with a very small MSS would.
pub(crate) const MAX_SEGMENTS: usize = IDEAL_BATCH_SIZE;

/// Largest read: the header of virtio and the largest packet that the kernel hands over.
const READ_SIZE: usize = VIRTIO_NET_HDR_LEN + u16::MAX as usize;

/// The reading half of the TUN link.
pub(crate) struct TunReader {
    tun: Arc<AsyncDevice>,
    mtu: watch::Receiver<u16>,
    raw: Vec<u8>,
    /// Empty buffers for the next read, each as large as the MTU.
    segments: Vec<Segment>,
    sizes: Vec<usize>,
    ready: Vec<Packet<Ip>>,
}

/// A packet's buffer in the shape that tun-rs cuts segments into.
struct Segment(Packet);

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Segment {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Segment {
    fn new(pool: &PacketBufPool, mtu: usize) -> Self {
        let mut packet = pool.get();
        // The pool's buffers are 4 KiB; a larger MTU takes its own.
        if packet.len() < mtu {
            packet.buf_mut().resize(mtu, 0);
        }
        Self(packet)
    }
}

impl TunReader {
    pub(super) fn new(tun: Arc<AsyncDevice>, mtu: watch::Receiver<u16>) -> Self {
        Self {
            tun,
            mtu,
            raw: vec![0; READ_SIZE],
            segments: Vec::with_capacity(MAX_SEGMENTS),
            sizes: vec![0; MAX_SEGMENTS],
            ready: Vec::with_capacity(MAX_SEGMENTS),
        }
    }

    /// Makes every buffer fit for the present MTU.
    fn provide(&mut self, pool: &PacketBufPool) {
        let mtu = usize::from(*self.mtu.borrow());
        self.segments.retain(|segment| segment.0.len() >= mtu);
        while self.segments.len() < MAX_SEGMENTS {
            self.segments.push(Segment::new(pool, mtu));
        }
    }

    /// One read of the link: the packets are in `ready` afterwards.
    async fn read(&mut self, pool: &PacketBufPool) -> io::Result<()> {
        self.provide(pool);
        let count = self.tun.recv_multiple(&mut self.raw, &mut self.segments, &mut self.sizes, 0).await?;
        let header = self.raw.get(..VIRTIO_NET_HDR_LEN).and_then(|raw| VirtioNetHdr::decode(raw).ok());
        for (segment, size) in self.segments.drain(..count).zip(&self.sizes) {
            let mut packet = segment.0;
            packet.truncate(*size);
            if let Some(header) = &header {
                mend_checksum(header, &mut packet);
            }
            match packet.try_into_ip() {
                Ok(packet) => self.ready.push(packet),
                Err(error) => tracing::debug!(%error, "not an IP packet, dropped"),
            }
        }
        Ok(())
    }
}

/// A UDP checksum that comes out as zero is sent as all ones: zero means that there is none, which IPv6 drops (RFC 768;
/// RFC 8200, 8.1). tun-rs leaves it out where it completes the checksum of a packet that it doesn't cut.
fn mend_checksum(header: &VirtioNetHdr, packet: &mut [u8]) {
    // include/uapi/linux/virtio_net.h
    const NEEDS_CSUM: u8 = 1;
    const GSO_NONE: u8 = 0;
    const UDP_CHECKSUM: u16 = 6;
    let completed = header.flags & NEEDS_CSUM != 0 && header.gso_type == GSO_NONE;
    if !completed || header.csum_offset != UDP_CHECKSUM {
        return;
    }
    let at = usize::from(header.csum_start) + usize::from(UDP_CHECKSUM);
    if let Some(checksum) = packet.get_mut(at..at + 2).filter(|checksum| **checksum == [0, 0]) {
        checksum.fill(0xff);
    }
}

impl IpRecv for TunReader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        while self.ready.is_empty() {
            match self.read(pool).await {
                Ok(()) => {}
                // The link is gone (drivers/net/tun.c, tun_chr_read_iter).
                Err(error) if Errno::from_io_error(&error) == Some(Errno::BADFD) => {
                    return Err(error);
                }
                // One packet that could not be cut. It must not reach the engine, which takes
                // some kinds of error (InvalidInput, InvalidData) for the end of the link.
                Err(error) => tracing::debug!(%error, "packet from the TUN link dropped"),
            }
        }
        Ok(self.ready.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::from(self.mtu.clone())
    }
}
