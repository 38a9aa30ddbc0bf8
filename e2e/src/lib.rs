//! Black-box tests on real parts: an in-memory Node API, a lab of network namespaces, a client
//! of the cluster in `cluster/`, and the suite runner that all tiers share.
//!
//! It drives only what a user has: the binaries, Node objects, `ip`, `wg`, `ping`, captures. It
//! uses none of the project's crates, so a fault there cannot hide itself here.

pub mod api;
pub mod cluster;
pub mod lab;
pub mod look;
pub mod suite;
