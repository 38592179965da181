//! The integration tests: greenshield from outside, with a real Synapse, a real Postgres and real
//! Matrix clients. One binary, so that the expensive world is started once and shared.
//!
//! `scripts/test` brings all of it; see `support` for what a test can ask for.

mod architecture;
mod e2e;
mod support;
