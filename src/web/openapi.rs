//! Publishing the description of a listener's routes.

use axum::{Json, Router, routing::get};
use utoipa::openapi::OpenApi;

/// Serves `document` at `/openapi.json`.
pub fn router(document: OpenApi) -> Router {
    Router::new().route("/openapi.json", get(async move || Json(document)))
}
