//! `GET /_matrix/app/v1/{users,rooms}/...`: does this exist?
//!
//! The homeserver may hold an event back until we have answered, so these are one indexed read.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{AppserviceState, auth::FromHomeserver};
use crate::{store::bots, web::ApiError};

/// A user exists if it is one of our bots. Users are only ever made by a signup.
pub(super) async fn user(
    _: FromHomeserver,
    State(state): State<AppserviceState>,
    Path(user_id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let mut conn = state.store.connection().await?;
    if bots::by_user_ids(&mut conn, &[user_id]).await?.is_empty() {
        return Err(ApiError::not_found("No bot has this user id: bots are made by a signup"));
    }
    Ok(Json(json!({})))
}

/// We own no room aliases.
pub(super) async fn room(_: FromHomeserver, Path(_alias): Path<String>) -> ApiError {
    ApiError::not_found("greenshield has no room aliases")
}
