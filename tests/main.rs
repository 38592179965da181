//! The integration tests: greenshield from outside, with a real Synapse, a real Postgres and real
//! Matrix clients. One binary, so that the expensive world is started once and shared.
//!
//! `scripts/test` brings all of it; see `support` for what a test can ask for.

#![allow(
    clippy::pedantic,
    clippy::disallowed_methods,
    clippy::excessive_nesting,
    reason = "scenes are read, not called; they make clients and tasks of their own"
)]

mod architecture;
mod attacks;
mod e2e;
mod fast;
mod rivals;
mod storms;
mod support;
