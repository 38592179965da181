//! The integration tests: greenshield from outside, with a real Synapse, a real Postgres and real
//! Matrix clients. One binary, so that the expensive world is started once and shared.
//!
//! `scripts/test` brings all of it; see `support` for what a test can ask for.

#![expect(clippy::disallowed_methods, reason = "tests make clients and tasks of their own")]
#![expect(clippy::format_collect, reason = "a few bytes as hexadecimal")]

mod architecture;
mod e2e;
mod fast;
mod support;
