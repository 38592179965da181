//! `POST /_matrix/app/v1/ping`: the homeserver checks that it can reach us.

use axum::Json;
use serde_json::{Value, json};

use super::auth::FromHomeserver;

/// Always the same: that it was answered is the answer.
pub(super) async fn post(_: FromHomeserver) -> Json<Value> {
    Json(json!({}))
}
