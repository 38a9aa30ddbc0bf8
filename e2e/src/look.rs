//! What a person sees of nodes with agents, and waits for it: the cases of `tests/overlay` and `torture` look through it.
//!
//! It owns no policy of what is right: a case compares, and says what it expects.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is missing")]

pub mod breaks;
pub mod converged;
pub mod kernel;
mod node;
pub mod peers;
pub mod planted;
pub mod rotation;

pub use node::*;
