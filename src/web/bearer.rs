//! The bearer token of a request.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::{header, request::Parts};
use secrecy::SecretString;

use super::ApiError;

/// The token of `Authorization: Bearer <token>`; its absence is `M_MISSING_TOKEN`. Tokens are never
/// taken from the query string, where every proxy logs them, and two headers are none: what stands
/// before us may have looked at the other one.
#[derive(Clone, Debug)]
pub struct Bearer(pub SecretString);

fn of(parts: &Parts) -> Option<Bearer> {
    let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = value.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
        .then(|| Bearer(token.to_owned().into()))
}

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        of(parts).ok_or_else(ApiError::missing_token)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Bearer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, ApiError> {
        Ok(of(parts))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn token(value: &str) -> Option<String> {
        let request = http::Request::builder().header(header::AUTHORIZATION, value).body(());
        let (parts, ()) = request.expect("a request").into_parts();
        of(&parts).map(|bearer| bearer.0.expose_secret().to_owned())
    }

    #[test]
    fn two_headers_are_none() {
        let request = http::Request::builder()
            .header(header::AUTHORIZATION, "Bearer a")
            .header(header::AUTHORIZATION, "Bearer b");
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        assert!(of(&parts).is_none());
    }

    #[test]
    fn only_a_bearer_token_is_one() {
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer "), None);
        assert_eq!(token("abc"), None);
    }
}
