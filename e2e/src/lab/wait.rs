//! Waiting for a condition: never for a time alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// A wait to speak of.
const LONG: Duration = Duration::from_secs(15);

/// Tries until the check succeeds and gives its value.
///
/// `WG_OVERLAY_E2E_PATIENCE`, a factor, stretches every timeout: an emulated machine is slower.
///
/// # Errors
/// It never did within the timeout: the error says what was awaited and holds the last failure.
pub fn eventually<T>(timeout: Duration, what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_every(INTERVAL, timeout, what, check)
}

/// Likewise, for a check that is itself work for the machine.
///
/// # Errors
/// As `eventually`.
pub fn eventually_every<T>(
    interval: Duration,
    timeout: Duration,
    what: &str,
    mut check: impl FnMut() -> Result<T>,
) -> Result<T> {
    let patience = std::env::var("WG_OVERLAY_E2E_PATIENCE").ok().and_then(|text| text.parse().ok());
    let timeout = timeout.mul_f64(patience.unwrap_or(1.0_f64).clamp(0.1, 100.0));
    let began = Instant::now();
    let deadline = began + timeout;
    loop {
        match check() {
            Ok(value) => {
                if began.elapsed() > LONG {
                    eprintln!("  {what}: after {:?}", began.elapsed());
                }
                return Ok(value);
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("not within {timeout:?}: {what}"));
            }
            Err(_) => std::thread::sleep(interval),
        }
    }
}
