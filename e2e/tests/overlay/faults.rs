//! What goes wrong around an agent: the API server, the configuration, a port that another holds. And what its
//! commands say, which must never be the key.

#[path = "faults/api.rs"]
mod api;
#[path = "faults/commands.rs"]
mod commands;
#[path = "faults/credentials.rs"]
mod credentials;
#[path = "faults/port.rs"]
mod port;
#[path = "faults/requests.rs"]
mod requests;

use wg_overlay_e2e::suite::Case;

/// Those that the device has a part in.
pub fn cases() -> Vec<Case> {
    [commands::cases(), port::cases()].into_iter().flatten().collect()
}

/// Those that strace has a part in.
pub fn traced_cases() -> Vec<Case> {
    requests::cases()
}

/// The API server's.
pub fn api_cases() -> Vec<Case> {
    [api::cases(), credentials::cases()].into_iter().flatten().collect()
}
