//! What a scene needs: a homeserver, a database, greenshield, and humans who use Matrix as Element
//! does.
//!
//! ```text
//! World ── Database      a fresh database of the Postgres that `scripts/test` started
//!       ├─ Synapse       a real homeserver in a directory of its own
//!       │                or a `FakeHomeserver`, for what a real one cannot be made to do
//!       ├─ Greenshield   the binary under test
//!       └─ Human         a person with a client: matrix-rust-sdk or matrix-js-sdk, one trait
//! ```
//!
//! Everything started here dies with the test process, also when that is killed: `process` and
//! `scratch` see to it. Nothing waits for time to pass: `poll` waits for a state, with a deadline.

#![allow(
    dead_code,
    unused_imports,
    reason = "the test binary and the demo share this, and neither uses all of it"
)]

pub mod balancer;
pub mod cluster;
pub mod fake_homeserver;
pub mod greenshield;
pub mod hold;
pub mod human;
pub mod installed;
pub mod poll;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod random;
pub mod relay;
pub mod report;
pub mod scratch;
pub mod synapse;
pub mod world;

/// An HTTP client for one runtime: its connections belong to the runtime that opened them, so
/// tests that share a world do not share clients.
pub fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(std::time::Duration::from_secs(60))
        .build()
        .expect("a client without special wishes can be built")
}
