//! What time brings: handshakes again, keepalives, the end of sessions.

use std::time::Duration;

use gotatun::{noise::errors::WireGuardError, packet::Packet};
use tokio::time::{MissedTickBehavior, interval};

use super::Shared;

/// How often each peer's timers are looked at: gotatun's own.
const PERIOD: Duration = Duration::from_millis(250);

/// After how many periods the indices that are over are forgotten. They lead to a peer that no longer knows them, so that
/// it is a matter of memory alone.
const SWEEP: u32 = 40;

/// Runs until dropped.
pub(super) async fn run(shared: &Shared) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in (0..SWEEP).cycle() {
        period.tick().await;
        if count == 0 {
            shared.peers.sweep();
        }
        shared.identity().limiter.try_reset_count();
        let underlay = shared.underlay();
        for peer in shared.peers.all() {
            let mut state = peer.state.lock();
            let Some(endpoint) = state.endpoint else { continue };
            match state.tunnel.update_timers() {
                Ok(Some(message)) => {
                    shared.peers.register(&message, &state, &peer);
                    drop(state);
                    underlay.send(&Packet::from(message), endpoint);
                }
                // Where keepalives are wanted, the kernel never gives up (wg_expired_send_persistent_keepalive, timers.c).
                Err(WireGuardError::ConnectionExpired) if state.tunnel.persistent_keepalive().is_some() => {
                    state.tunnel.reset();
                }
                Ok(None) | Err(WireGuardError::ConnectionExpired) => {}
                Err(error) => tracing::debug!(?error, "a timer failed"),
            }
        }
    }
}
