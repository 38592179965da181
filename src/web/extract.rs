//! Bodies, with rejections in Matrix's shape.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{Form, FromRequest, FromRequestParts, Path, Request, rejection::BytesRejection},
};
use bytes::BytesMut;
use http::{StatusCode, request::Parts};
use serde::de::DeserializeOwned;

use super::ApiError;

/// How long a body may take to arrive: a client that trickles keeps a connection no longer.
const ARRIVAL: Duration = Duration::from_secs(30);

/// The body's bytes; more than the listener's limit is `M_TOO_LARGE`.
#[derive(Clone, Debug)]
pub struct MatrixBytes(pub Bytes);

/// The body as JSON, whatever `Content-Type` says: many clients leave it out.
///
/// What does not parse is `M_NOT_JSON`; a missing field is `M_MISSING_PARAM`, anything else that does
/// not fit `M_BAD_JSON`, and both name the field.
#[derive(Clone, Debug)]
pub struct MatrixJson<T>(pub T);

/// A parameter in the path.
#[derive(Clone, Debug)]
pub struct MatrixPath(pub String);

/// The body as a form.
#[derive(Clone, Debug)]
pub struct MatrixForm<T>(pub T);

impl<S: Send + Sync> FromRequest<S> for MatrixBytes {
    type Rejection = ApiError;

    /// Copied together as it comes: a piece of it, be it one byte, keeps the 8 KiB that it was read into.
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let arrived = tokio::time::timeout(ARRIVAL, BytesMut::from_request(request, state)).await;
        match arrived.map_err(|_| too_slow())? {
            Ok(bytes) => Ok(Self(bytes.freeze())),
            Err(rejection) => Err(unread(&rejection)),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for MatrixForm<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let MatrixBytes(bytes) = MatrixBytes::from_request(request, state).await?;
        let request = Request::from_parts(parts, Body::from(bytes));
        match Form::from_request(request, state).await {
            Ok(Form(form)) => Ok(Self(form)),
            // What it says may repeat what was sent.
            Err(_) => Err(ApiError::invalid_param("The form did not arrive whole: send it again")),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MatrixPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(parameter)) => Ok(Self(parameter)),
            Err(_) => Err(ApiError::invalid_param(
                "A part of the path is no text: encode it as UTF-8, and that with %-escapes",
            )),
        }
    }
}

fn too_slow() -> ApiError {
    let error = format!("The body took longer than {} seconds: send it again", ARRIVAL.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", error)
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for MatrixJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let MatrixBytes(bytes) = MatrixBytes::from_request(request, state).await?;
        Self::parse_bytes(&bytes)
    }
}

impl<T: DeserializeOwned> MatrixJson<T> {
    /// `T` from bytes that a handler took itself.
    ///
    /// # Errors
    ///
    /// As the extractor's.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Self, ApiError> {
        parse(bytes).map(Self)
    }
}

fn unread(rejection: &BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::too_large(None);
    }
    ApiError::not_json("The body did not arrive whole: send the request again")
}

/// `T` from the bytes of a JSON body.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::not_json("The body is empty: send a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        unfit(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| unfit(".", &error))?;
    Ok(parsed)
}

fn unfit(path: &str, error: &serde_json::Error) -> ApiError {
    if !error.is_data() {
        return ApiError::not_json(format!("The body is not JSON ({error}): send a JSON object"));
    }
    let text = error.to_string();
    if let Some(field) = text.strip_prefix("missing field `").and_then(|t| t.split('`').next()) {
        return ApiError::missing_param(&match path {
            "." => field.to_owned(),
            path => format!("{path}.{field}"),
        });
    }
    let text = wanted(&text);
    match path {
        "." => ApiError::bad_json(format!("The body does not fit: {text}")),
        path => ApiError::bad_json(format!("`{path}` does not fit: {text}")),
    }
}

/// What was wanted. Before that stands what was sent, which may be a code or a token.
fn wanted(text: &str) -> &str {
    text.rfind("expected ").map_or("see /openapi.json", |at| &text[at..])
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        count: u8,
    }

    fn rejected(body: &str) -> (String, String) {
        let error = parse::<Outer>(body.as_bytes()).expect_err(body);
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        (error.errcode().to_owned(), error.text().to_owned())
    }

    #[test]
    fn a_body_that_fits_is_taken() {
        let outer: Outer = parse(br#"{"inner": {"count": 3}, "more": 1}"#).expect("fits");
        assert_eq!(outer.inner.count, 3);
    }

    #[test]
    fn what_does_not_fit_is_told_by_name() {
        for (body, errcode, named) in [
            ("", "M_NOT_JSON", "empty"),
            ("{", "M_NOT_JSON", "JSON"),
            (r#"{"inner": {"count": 3}} x"#, "M_NOT_JSON", "JSON"),
            ("{}", "M_MISSING_PARAM", "`inner`"),
            (r#"{"inner": {}}"#, "M_MISSING_PARAM", "`inner.count`"),
            (r#"{"inner": {"count": "a"}}"#, "M_BAD_JSON", "`inner.count`"),
            (r#"{"inner": {"count": 999}}"#, "M_BAD_JSON", "expected u8"),
            ("[]", "M_BAD_JSON", "body"),
            (r#""a""#, "M_BAD_JSON", "expected struct Outer"),
        ] {
            let (code, text) = rejected(body);
            assert!(code == errcode && text.contains(named), "{body}: {code} {text}");
            assert!(!text.contains("\"a\"") && !text.contains("999"), "it repeats: {text}");
        }
    }
}
