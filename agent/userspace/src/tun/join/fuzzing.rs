//! Joining without a link to write to.

use gotatun::packet::Packet;

use super::{IPV6, Joiner, VIRTIO};
use crate::tun::Cutter;

/// Joins the packets that peers sent, and cuts each train again.
pub fn join(packets: &[&[u8]], joins_datagrams: bool) {
    let packets: Vec<_> = packets.iter().map(|bytes| Packet::copy_from(*bytes)).collect();
    let mut joiner = Joiner::default();
    joiner.plan(&packets, joins_datagrams);
    let count: usize = joiner.trains.iter().map(|train| train.count).sum();
    assert_eq!(count, packets.len(), "each packet is in one train");
    for train in joiner.trains.iter().filter(|train| train.count > 1) {
        let mut room = [0; VIRTIO + IPV6 + 60];
        let (Some(segment), Some(first)) = (&train.segment, packets.get(train.first)) else {
            unreachable!("only packets of a flow are joined")
        };
        let headers = train.headers(segment, first, &mut room);
        let mut raw = headers.unwrap_or_else(|| unreachable!("what was planned has headers")).to_vec();
        let mut index = Some(train.first);
        while let Some(at) = index {
            raw.extend(packets.get(at).and_then(|packet| packet.get(segment.payload..)).unwrap_or_default());
            index = joiner.next.get(at).copied().flatten();
        }
        let mut cut = Vec::new();
        assert!(Cutter::default().cut(&raw, 0, &mut cut).is_some() && cut.len() == train.count, "{raw:?}");
    }
}
