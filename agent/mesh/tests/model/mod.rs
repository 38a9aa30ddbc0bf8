//! What every test of this crate needs: a cluster of honest nodes, a kernel that carries plans out, and generators.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod arbitrary;
pub mod cluster;
pub mod kernel;
pub mod simulation;
