//! Packets between all pairs of pods, counted by number: with a planted loss that must be counted, and a pair of
//! namespaces with a plain veth between them that must lose none. And what of them the underlay carried outside the tunnel.

use anyhow::Result;
use wg_overlay_e2e::lab::{Capture, Lab, Pace, PairReport, Pod, Prober};
use wg_overlay_e2e::look::converged::PATIENCE;
use wg_overlay_e2e::look::planted::plant;

use super::run::Run;

/// Traffic that is counted from the end of `start` on.
pub struct Traffic {
    pods: Prober,
    plain: Prober,
    underlay: Capture,
}

impl Traffic {
    /// Waits until packets flow between all pairs, and shows that a loss is counted.
    pub fn start(run: &mut Run, lab: &Lab, pods: &[&Pod], pace: Pace) -> Result<Self> {
        let mut underlay = lab.capture()?;
        underlay.positive_control()?;
        let mut traffic =
            Self { pods: lab.paced_prober(pods, pace)?, plain: lab.plain_prober(pace)?, underlay };
        traffic.pods.await_flow(PATIENCE)?;
        traffic.plain.await_flow(PATIENCE)?;
        let &[from, to, ..] = pods else { anyhow::bail!("traffic needs two pods") };
        let dropped = plant(lab, &mut traffic.pods, from, to)?;
        run.count("a planted loss is counted", dropped, 0, "packets");
        traffic.pods.reset()?;
        traffic.plain.reset()?;
        Ok(traffic)
    }

    /// Stops it, and counts what was lost of the pairs that this is asked of.
    pub fn end(self, run: &mut Run, item: &str, of: impl Fn(&PairReport) -> bool) -> Result<()> {
        let (pods, plain, underlay) = (self.pods.stop()?, self.plain.stop()?, self.underlay.stop()?);
        let counted: Vec<PairReport> = pods.into_iter().filter(|pair| of(pair)).collect();
        let sum = |of: fn(&PairReport) -> u64| counted.iter().map(of).sum::<u64>();
        let (sent, lost) = (sum(|pair| pair.sent), sum(|pair| pair.lost));
        let mut lines = PairReport::losses(&plain);
        let void = !lines.is_empty();
        if void {
            lines.insert(0, "void: the plain veth lost packets, too".to_owned());
        }
        lines.extend(PairReport::losses(&counted));
        run.note(item, (sent, lost), "packets", lines.join("\n"), sent > 0 && lost == 0 && !void);
        let (carried, outside) = (underlay.class("wireguard").packets, underlay.plaintext());
        let verdict = underlay.assert_no_plaintext().err().map(|error| error.to_string());
        let holds = carried > 0 && verdict.is_none();
        let item = "packets of the tunnel on the underlay, and pods' packets beside it";
        run.note(item, (carried, outside), "packets", verdict.unwrap_or_default(), holds);
        Ok(())
    }
}
