//! Signup: the page and the API by which a bot comes to be.
//!
//! A call turns a code and a name into rows, in one transaction: a use of the code, a bot with its
//! device id, and a signup with every step still to do. A worker does the steps at the homeserver, and
//! the call waits for it, a bounded time. Whoever asks again with the same code and name is given the
//! same bot, however far the first call got: nothing is made twice.
//!
//! - [`rules`]: what a name, a code and a repeated call may be. Pure.
//! - `flow`: the transaction, the waiting, the answer; `api`, `crosssign` and `page` speak for it.

mod api;
mod attempts;
mod crosssign;
mod errors;
mod flow;
mod page;
pub mod rules;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{get, post},
};
use ruma::OwnedServerName;
use utoipa::OpenApi;

use self::attempts::Attempts;
use crate::{
    clock::Clock,
    config::Config,
    model::VerificationPolicy,
    store::{Signals, Store},
};

/// How long a call waits for the worker.
pub const WAIT: Duration = Duration::from_secs(60);

/// What signing up needs to know; cheap to clone.
#[derive(Clone)]
pub struct Signup {
    store: Store,
    signals: Signals,
    clock: Clock,
    settings: Arc<Settings>,
}

struct Settings {
    enabled: bool,
    localpart_prefix: String,
    server_name: OwnedServerName,
    verification_policy: VerificationPolicy,
    attempts: Attempts,
    wait: Duration,
}

impl Signup {
    /// Signup as `config` wants it.
    #[must_use]
    pub fn new(config: &Config, store: Store, signals: Signals, clock: Clock) -> Self {
        let settings = Settings {
            enabled: config.signup.enabled,
            localpart_prefix: config.bots.localpart_prefix.clone(),
            server_name: config.homeserver.server_name.clone(),
            verification_policy: config.bots.verification_policy,
            attempts: Attempts::new(config.limits.signup_attempts_per_minute),
            wait: WAIT,
        };
        Self { store, signals, clock, settings: Arc::new(settings) }
    }
}

/// The routes of the public listener that are signup's.
pub fn router(signup: Signup) -> Router {
    Router::new()
        .route("/signup", get(page::form).post(page::submit))
        .route("/signup/api", post(api::sign_up))
        .route("/signup/api/crosssign", post(crosssign::crosssign))
        .with_state(signup)
}

/// The description of those routes.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(OpenApi)]
    #[openapi(paths(page::form, page::submit, api::sign_up, crosssign::crosssign))]
    struct Document;

    Document::openapi()
}
