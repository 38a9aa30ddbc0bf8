//! What a capture found: counts by link and class, and the verdict on them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::PLAINTEXT;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes with IP headers.
    pub bytes: u64,
}

/// What one machine sent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LinkReport {
    /// The switch's port.
    pub link: String,
    /// `plaintext`, `wireguard`, `control` (the API), `neighbour` (ARP, neighbour and multicast
    /// discovery), `other`.
    pub classes: BTreeMap<String, Count>,
}

/// What a capture found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureReport {
    /// One entry a link.
    pub links: Vec<LinkReport>,
    /// Plaintext packets that tcpdump saw.
    pub seen: u64,
    /// Packets that tcpdump lost.
    pub dropped: u64,
    /// The first plaintext packets in words.
    pub samples: Vec<String>,
    /// The deliberate packets among the plaintext.
    pub positive_controls: u64,
}

impl CaptureReport {
    /// Plaintext pod packets, without the deliberate ones: the larger of what the witnesses say.
    #[must_use]
    pub fn plaintext(&self) -> u64 {
        self.class(PLAINTEXT).packets.max(self.seen).saturating_sub(self.positive_controls)
    }

    /// A class over all links.
    #[must_use]
    pub fn class(&self, class: &str) -> Count {
        let all = self.links.iter().filter_map(|link| link.classes.get(class));
        all.fold(Count::default(), |sum, count| Count {
            packets: sum.packets + count.packets,
            bytes: sum.bytes + count.bytes,
        })
    }

    /// That the capture is worth something and found no plaintext.
    ///
    /// # Errors
    /// No positive control was made, packets were lost, or there was plaintext (with samples).
    pub fn assert_no_plaintext(&self) -> Result<()> {
        ensure!(self.positive_controls > 0, "the capture was not proved by a positive control");
        ensure!(self.dropped == 0, "tcpdump lost {} packets:\n{self}", self.dropped);
        ensure!(self.plaintext() == 0, "{} plaintext pod packets on the underlay:\n{self}", self.plaintext());
        Ok(())
    }
}

impl fmt::Display for CaptureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CLASSES: [&str; 5] = ["wireguard", "control", "neighbour", "other", PLAINTEXT];
        write!(f, "{:10}", "LINK")?;
        CLASSES.iter().try_for_each(|class| write!(f, " {class:>10}"))?;
        writeln!(f)?;
        for link in &self.links {
            write!(f, "{:10}", link.link)?;
            for class in CLASSES {
                write!(f, " {:>10}", link.classes.get(class).map_or(0, |count| count.packets))?;
            }
            writeln!(f)?;
        }
        self.samples.iter().try_for_each(|line| writeln!(f, "plaintext: {line}"))?;
        write!(f, "lost: {}; deliberate among the plaintext: {}", self.dropped, self.positive_controls)
    }
}
