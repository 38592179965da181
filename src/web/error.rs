//! Errors in Matrix's shape, whose text names the cure.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value};
use tracing::{debug, error};

use crate::{store::StoreError, telemetry::chain};

/// An answer that says what went wrong and what to do: `{"errcode": .., "error": ..}`.
///
/// What caused it is logged once, when the answer is made, and never shown.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    errcode: Cow<'static, str>,
    error: Cow<'static, str>,
    retry_after: Option<Duration>,
    extra: Map<String, Value>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl ApiError {
    /// Any error; the constructors below are for the common ones.
    #[must_use]
    pub fn new(
        status: StatusCode,
        errcode: impl Into<Cow<'static, str>>,
        error: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            errcode: errcode.into(),
            error: error.into(),
            retry_after: None,
            extra: Map::new(),
            source: None,
        }
    }

    /// 400 `M_NOT_JSON`: the body does not parse.
    #[must_use]
    pub fn not_json(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_NOT_JSON", error)
    }

    /// 400 `M_BAD_JSON`: the body parses and is not what is asked for.
    #[must_use]
    pub fn bad_json(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_BAD_JSON", error)
    }

    /// 400 `M_MISSING_PARAM`: `name` is not there.
    #[must_use]
    pub fn missing_param(name: &str) -> Self {
        let error = format!("`{name}` is missing: add it to the request");
        Self::new(StatusCode::BAD_REQUEST, "M_MISSING_PARAM", error)
    }

    /// 400 `M_INVALID_PARAM`: a parameter cannot have this value.
    #[must_use]
    pub fn invalid_param(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", error)
    }

    /// 401 `M_MISSING_TOKEN`: no bearer token.
    #[must_use]
    pub fn missing_token() -> Self {
        let error = "No access token: send the header `Authorization: Bearer <token>`";
        Self::new(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", error)
    }

    /// 401 `M_UNKNOWN_TOKEN`: a token that is not, or no longer, valid.
    #[must_use]
    pub fn unknown_token() -> Self {
        let error = "This access token is not known, or was revoked: use the one that the signup \
                     answered with";
        Self::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", error)
    }

    /// 403 `M_FORBIDDEN`.
    #[must_use]
    pub fn forbidden(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", error)
    }

    /// 404 `M_NOT_FOUND`: the route exists, what it is asked for does not.
    #[must_use]
    pub fn not_found(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", error)
    }

    /// 404 `M_UNRECOGNIZED`: no such route.
    #[must_use]
    pub fn unrecognized() -> Self {
        let error = "There is nothing here: see /openapi.json for what there is";
        Self::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", error)
    }

    /// 405 `M_UNRECOGNIZED`: the route exists, but not for this method.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let error = "This path does not take this method: see the Allow header and /openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", error)
    }

    /// 409 `M_USER_IN_USE`.
    #[must_use]
    pub fn user_in_use(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, "M_USER_IN_USE", error)
    }

    /// 413 `M_TOO_LARGE`.
    #[must_use]
    pub fn too_large(limit: Option<usize>) -> Self {
        let error = limit.map_or_else(
            || "The request is too large: send less at a time".to_owned(),
            |limit| format!("The request is larger than {limit} bytes: send less at a time"),
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", error)
    }

    /// 429 `M_LIMIT_EXCEEDED`, with `Retry-After`.
    #[must_use]
    pub fn limit_exceeded(retry_after: Duration) -> Self {
        // Whole seconds, rounded up: sooner would be refused again.
        let retry_after =
            Duration::from_secs(retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0));
        let error = format!("Too many requests: wait {} seconds", retry_after.as_secs());
        let mut limited = Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", error);
        limited.retry_after = Some(retry_after);
        let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        limited.with("retry_after_ms", millis)
    }

    /// 500 `M_UNKNOWN`: our fault.
    #[must_use]
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let error =
            "Something failed inside: try again, then ask the operator, whose log tells what";
        let mut internal = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", error);
        internal.source = Some(source.into());
        internal
    }

    /// 503 `M_UNKNOWN`: not now.
    #[must_use]
    pub fn unavailable(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", error)
    }

    /// Adds a field beside `errcode` and `error`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to come again.
    #[must_use]
    pub const fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The status that it answers with.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The Matrix error code.
    #[must_use]
    pub fn errcode(&self) -> &str {
        &self.errcode
    }

    /// The text for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.error
    }

    /// The value of `Retry-After`, if it says when to come again.
    #[must_use]
    pub fn again_after(&self) -> Option<HeaderValue> {
        self.retry_after.map(|after| HeaderValue::from(after.as_secs().max(1)))
    }

    fn log(&self) {
        let text = chain(self);
        if self.status.is_server_error() {
            error!("{text}");
        } else {
            debug!("{text}");
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.errcode, self.error)
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let again = self.again_after();
        let mut body = self.extra;
        body.insert("errcode".to_owned(), self.errcode.into());
        body.insert("error".to_owned(), self.error.into());
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = again {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn answer(error: ApiError) -> (StatusCode, Option<String>, Value) {
        let response = error.into_response();
        let after = response.headers().get(header::RETRY_AFTER);
        let after = after.map(|v| v.to_str().expect("ASCII").to_owned());
        let status = response.status();
        let body = to_bytes(response.into_body(), 10_000).await.expect("a body");
        (status, after, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn errors_have_the_shape_of_matrix() {
        let (status, after, body) =
            answer(ApiError::user_in_use("taken").with("steps", Map::new())).await;
        assert_eq!((status, after), (StatusCode::CONFLICT, None));
        let expected =
            serde_json::json!({"errcode": "M_USER_IN_USE", "error": "taken", "steps": {}});
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn a_limit_says_when_to_come_again() {
        let (status, after, body) =
            answer(ApiError::limit_exceeded(Duration::from_millis(1200))).await;
        assert_eq!((status, after.as_deref()), (StatusCode::TOO_MANY_REQUESTS, Some("2")));
        assert_eq!(body["retry_after_ms"], 2000);
    }

    #[tokio::test]
    async fn what_caused_it_is_not_shown() {
        let (status, _, body) = answer(ApiError::internal("canary")).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!body.to_string().contains("canary"));
    }
}
