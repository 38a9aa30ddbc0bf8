//! Black-box tests on real parts: an in-memory Node API, a lab of network namespaces, and the
//! suite runner that both tiers (this host, the VM) share.
//!
//! It drives only what a user has: the binaries, Node objects, `ip`, `wg`, `ping`, captures. It
//! uses none of the project's crates, so a fault there cannot hide itself here.

pub mod api;
pub mod lab;
pub mod suite;
