//! One WireGuard handshake, both ends: computation alone.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::x25519::{PublicKey, StaticSecret};

use crate::Options;
use crate::report::Findings;
use crate::stats::median;

/// Handshakes for each round of the bench.
const HANDSHAKES: u32 = 20;

/// Measures the row of `Group::Handshake`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let took = (0..options.rounds * HANDSHAKES).map(|_| handshake()).collect::<Result<Vec<f64>>>()?;
    findings.single("handshake", median(&took).context("no rounds")?);
    Ok(())
}

/// In microseconds.
fn handshake() -> Result<f64> {
    let [one, other] = [[1; 32], [2; 32]].map(StaticSecret::from);
    let (mut initiator, mut responder) = (end(&one, &other), end(&other, &one));
    let began = Instant::now();
    let initiation = initiator.format_handshake_initiation(false).context("no initiation")?;
    let TunnResult::WriteToNetwork(response) = responder.handle_incoming_packet(initiation.into()) else {
        bail!("no response");
    };
    let TunnResult::WriteToNetwork(_) = initiator.handle_incoming_packet(response) else {
        bail!("no session");
    };
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

fn end(own: &StaticSecret, other: &StaticSecret) -> Tunn {
    let limiter = Arc::new(RateLimiter::new(&PublicKey::from(own), u64::MAX));
    Tunn::new(own.clone(), PublicKey::from(other), None, None, IndexTable::from_os_rng(), limiter)
}
