//! `GET /_matrix/app/v1/{users,rooms}/...`: does this exist?
//!
//! The homeserver may hold an event back until we have answered, so these are one indexed read.

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{AppserviceState, auth::FromHomeserver};
use crate::{
    model::foreign,
    store::bots,
    web::{ApiError, MatrixPath},
};

/// A user exists if it is one of our bots. Users are only ever made by a signup.
pub(super) async fn user(
    _: FromHomeserver,
    State(state): State<AppserviceState>,
    MatrixPath(user_id): MatrixPath,
) -> Result<Json<Value>, ApiError> {
    let none = || ApiError::not_found("No bot has this user id: bots are made by a signup");
    if !foreign::is_id(&user_id) {
        return Err(none());
    }
    let mut conn = state.store.connection().await?;
    if bots::by_user_ids(&mut conn, &[user_id]).await?.is_empty() {
        return Err(none());
    }
    Ok(Json(json!({})))
}

/// We own no room aliases.
pub(super) async fn room(_: FromHomeserver, _: MatrixPath) -> ApiError {
    ApiError::not_found("greenshield has no room aliases")
}
