//! Packets from the engine to the kernel: those that wait together are joined by flow (GRO).

use std::{io, sync::Arc};

use gotatun::{
    packet::{Ip, Packet},
    tun::IpSend,
};
use rustix::io::Errno;
use tokio::{sync::mpsc, task::AbortHandle};
use tun_rs::{AsyncDevice, GROTable, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

/// Packets that may wait for the link; the engine's own channel before it holds 4,000.
const QUEUE: usize = 2 * IDEAL_BATCH_SIZE;

/// The writing half of the TUN link. The task behind it ends with it.
pub(crate) struct TunWriter {
    queue: mpsc::Sender<Packet<Ip>>,
    _task: AbortOnDrop,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl TunWriter {
    pub(super) fn spawn(tun: Arc<AsyncDevice>, name: String) -> Self {
        let (queue, packets) = mpsc::channel(QUEUE);
        let task = tokio::spawn(write_all(tun, name, packets));
        Self { queue, _task: AbortOnDrop(task.abort_handle()) }
    }
}

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.queue.send(packet).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// Writes what waits, in batches, until the link is gone.
async fn write_all(tun: Arc<AsyncDevice>, name: String, mut packets: mpsc::Receiver<Packet<Ip>>) {
    let mut waiting = Vec::with_capacity(IDEAL_BATCH_SIZE);
    let mut buffers: Vec<Vec<u8>> = Vec::new();
    buffers.resize_with(IDEAL_BATCH_SIZE, Vec::new);
    let mut table = GROTable::default();

    loop {
        let count = packets.recv_many(&mut waiting, IDEAL_BATCH_SIZE).await;
        if count == 0 {
            return;
        }
        // Room for virtio's header comes before each packet.
        for (packet, buffer) in waiting.drain(..).zip(&mut buffers) {
            buffer.clear();
            buffer.resize(VIRTIO_NET_HDR_LEN, 0);
            buffer.extend_from_slice(&packet.into_bytes());
        }
        let Some(batch) = buffers.get_mut(..count) else {
            return;
        };
        match tun.send_multiple(&mut table, batch, VIRTIO_NET_HDR_LEN).await {
            Ok(_) => {}
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::BADFD) => return,
                // EIO: the link is down (tun_chr_write_iter). EINVAL: the kernel does not take
                // this packet. Both lose packets, as any link does, and nothing else.
                _ => tracing::debug!(device = name, %error, "packets to the TUN link dropped"),
            },
        }
    }
}
