//! What the homeserver calls (Application Service API, specification v1.17).
//!
//! A transaction is turned into rows and answered: nothing here decrypts, calls the homeserver, or
//! waits for a worker. The order is the promise: the rows are committed *before* the `200 {}`, so
//! whatever the homeserver believes delivered is on our disk.
//!
//! Read in this order: [`auth`] (is it the homeserver?), [`transactions`] (the endpoint), [`wire`]
//! (what a body says), [`fan_out`] (who it concerns), [`room_facts`] (what state events tell),
//! [`refusals`] (what was not taken in), [`queries`] (does this user exist?) and [`ping`].

mod auth;
mod fan_out;
mod ping;
mod queries;
mod refusals;
mod room_facts;
mod transactions;
pub mod wire;

use axum::{
    Router,
    routing::{get, post, put},
};
use secrecy::SecretString;

pub use self::refusals::Refusals;
use crate::{
    clock::Clock,
    store::{Signals, Store},
};

/// What the endpoints need.
#[derive(Clone)]
pub struct AppserviceState {
    /// The database.
    pub store: Store,
    /// Who is told of work inside this process.
    pub signals: Signals,
    /// The time.
    pub clock: Clock,
    /// What the homeserver must show.
    pub hs_token: SecretString,
    /// The transactions that we did not take in.
    pub refusals: Refusals,
}

/// The routes of the `appservice` listener.
pub fn router(state: AppserviceState) -> Router {
    Router::new()
        .route("/_matrix/app/v1/transactions/{txn_id}", put(transactions::put))
        .route("/_matrix/app/v1/users/{user_id}", get(queries::user))
        .route("/_matrix/app/v1/rooms/{alias}", get(queries::room))
        .route("/_matrix/app/v1/ping", post(ping::post))
        .with_state(state)
}
