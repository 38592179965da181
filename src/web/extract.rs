//! Bodies, with rejections in Matrix's shape.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
};
use http::StatusCode;
use serde::de::DeserializeOwned;

use super::ApiError;

/// The body's bytes; more than the listener's limit is `M_TOO_LARGE`.
#[derive(Clone, Debug)]
pub struct MatrixBytes(pub Bytes);

/// The body as JSON, whatever `Content-Type` says: many clients leave it out.
///
/// What does not parse is `M_NOT_JSON`; a missing field is `M_MISSING_PARAM`, anything else that does
/// not fit `M_BAD_JSON`, and both name the field.
#[derive(Clone, Debug)]
pub struct MatrixJson<T>(pub T);

impl<S: Send + Sync> FromRequest<S> for MatrixBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(rejection) => Err(unread(&rejection)),
        }
    }
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
    match path {
        "." => ApiError::bad_json(format!("The body does not fit: {text}")),
        path => ApiError::bad_json(format!("`{path}` does not fit: {text}")),
    }
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
            ("[]", "M_BAD_JSON", "body"),
        ] {
            let (code, text) = rejected(body);
            assert!(code == errcode && text.contains(named), "{body}: {code} {text}");
        }
    }
}
