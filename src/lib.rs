//! greenshield gives a fleet of Matrix bots end-to-end encryption, one cross-signed identity each, and
//! emoji verification, so that the bots themselves need no cryptography at all.
//!
//! One sentence to hold on to: **HTTP turns requests into rows, workers turn rows into homeserver calls
//! and more rows, HTTP turns rows into responses.** Postgres is the only seam between them.
//!
//! ```text
//!   homeserver ──transactions──▶ appservice ──▶ inbox ──▶ worker ──▶ crypto, responder
//!        ▲                                                  │  │
//!        │                                     event_log ◀──┘  └──▶ outbox ──▶ worker ──┐
//!        │                                                                              │
//!        └───────────────────────────── homeserver client ◀─────────────────────────────┘
//! ```
//!
//! A file imports only from layers below its own (a test proves it):
//!
//! | layer | modules |
//! | --- | --- |
//! | 6 | `main`, [`app`], [`cli`], [`openapi`] |
//! | 5, the edges | [`appservice`], [`signup`], [`operator`], [`responder`] |
//! | 4 | [`worker`], [`web`] |
//! | 3 | [`crypto`] |
//! | 2 | [`store`], [`homeserver`] |
//! | 1 | [`model`], [`config`], [`registration`], [`telemetry`], [`clock`], [`secret`], [`yaml`] |

pub mod app;
pub mod appservice;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod homeserver;
pub mod model;
pub mod openapi;
pub mod operator;
pub mod registration;
pub mod responder;
pub mod secret;
pub mod signup;
pub mod store;
pub mod telemetry;
pub mod web;
pub mod worker;
pub mod yaml;
