//! What can go wrong between us and the homeserver, and whether trying again can help.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde::Deserialize;

/// Why a call failed. `Display` never carries tokens, keys or message text: the homeserver's own
/// error text at most.
#[derive(Debug, thiserror::Error)]
pub enum HomeserverError {
    /// No answer: connection refused or reset, timeout, TLS.
    #[error("the homeserver could not be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The homeserver said no.
    #[error("the homeserver refused: {status} {errcode}: {error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Matrix error code, or `M_UNKNOWN` where the body had none.
        errcode: String,
        /// Whether the body was a Matrix error at all: what stands before a homeserver answers in
        /// HTML.
        is_matrix: bool,
        /// Matrix error text.
        error: String,
        /// How long it asked us to wait.
        retry_after: Option<Duration>,
    },
    /// It answered with something that is not the answer to that call.
    #[error("the homeserver's answer could not be understood: {0}")]
    Answer(String),
    /// The request could not be put together: a bug, or ids that no server would take.
    #[error("the request could not be made: {0}")]
    Request(String),
}

/// The longest wait that we let a homeserver impose.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Body {
    errcode: Option<String>,
    error: Option<String>,
    retry_after_ms: Option<f64>,
}

impl HomeserverError {
    /// The error that a non-success answer means. Its text goes into logs and rows: it is short, one
    /// line, and without `secret`, which some proxies repeat from our request.
    pub(super) fn refused(
        status: StatusCode,
        retry_after: Option<Duration>,
        body: &[u8],
        secret: &str,
    ) -> Self {
        let body: Option<Body> = serde_json::from_slice(body).ok();
        let (errcode, error, millis) = body.map_or((None, None, None), |b| {
            (b.errcode, b.error, b.retry_after_ms.filter(|ms| ms.is_finite() && *ms >= 0.0))
        });
        Self::Refused {
            status: status.as_u16(),
            is_matrix: errcode.is_some(),
            errcode: errcode
                .filter(|errcode| is_errcode(errcode))
                .unwrap_or_else(|| "M_UNKNOWN".to_owned()),
            error: error.map_or_else(
                || "no Matrix error in the body".to_owned(),
                |error| repeatable(&error, secret),
            ),
            retry_after: millis
                .map(|ms| Duration::from_secs_f64((ms / 1000.0).min(MAX_RETRY_AFTER.as_secs_f64())))
                .or(retry_after),
        }
    }

    /// That an answer could not be understood. A parser quotes what it did not expect, so `why` is as much
    /// the homeserver's text as that of a refusal.
    pub(super) fn answer(why: &str, secret: &str) -> Self {
        Self::Answer(repeatable(why, secret))
    }

    /// Whether the same call may succeed later: an outage, a rate limit, a broken answer. A refusal
    /// that is not the homeserver's own says nothing about the call, unless it is about its size.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Answer(_) => true,
            Self::Request(_) => false,
            Self::Refused { status, is_matrix, .. } => {
                matches!(*status, 408 | 429 | 500..)
                    || (!is_matrix && *status != 413)
                    || self.is_away()
            }
        }
    }

    /// Whether nobody was there to answer, or only what stands before the homeserver, or one that does
    /// not know us (yet): it runs without our registration. None of that is about the call.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, is_matrix, errcode, .. } => {
                (!is_matrix && matches!(*status, 502..=504))
                    || (*status == 401 && errcode == "M_UNKNOWN_TOKEN")
            }
            Self::Answer(_) | Self::Request(_) => false,
        }
    }

    /// How long the homeserver asked us to wait, if it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The Matrix error code, if there is one.
    #[must_use]
    pub fn errcode(&self) -> Option<&str> {
        match self {
            Self::Refused { errcode, .. } => Some(errcode),
            _ => None,
        }
    }

    /// Whether the homeserver answered 404 `M_NOT_FOUND`: the thing asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, errcode, .. } if errcode == "M_NOT_FOUND")
    }
}

fn is_errcode(text: &str) -> bool {
    text.len() <= 100 && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c))
}

/// A text of the homeserver as it may stand in logs and rows: short, one line, and without `secret`, also
/// where a parser has quoted and so escaped it.
fn repeatable(text: &str, secret: &str) -> String {
    const INSTEAD: &str = "(our token)";
    let text = text.replace(secret, INSTEAD).replace(&secret.escape_debug().to_string(), INSTEAD);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// `Retry-After` in seconds; the date form is not used by any homeserver.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_and_limits_are_temporary_and_refusals_are_not() {
        let refused = |status: u16, body: &[u8]| {
            let status = StatusCode::from_u16(status).expect("status");
            HomeserverError::refused(status, None, body, "token")
        };
        let matrix = br#"{"errcode":"M_FORBIDDEN"}"#;
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(refused(status, matrix).is_temporary(), "{status}");
        }
        for status in [400, 401, 403, 404, 409, 413] {
            assert!(!refused(status, matrix).is_temporary(), "{status}");
        }
        // A reverse proxy that has lost its homeserver.
        assert!(refused(404, b"<html>").is_temporary());
        assert!(!refused(413, b"<html>").is_temporary());
        // A homeserver without our registration knows no token of ours: that is not about the call.
        let unknown = br#"{"errcode":"M_UNKNOWN_TOKEN"}"#;
        assert!(refused(401, unknown).is_temporary() && refused(401, unknown).is_away());
        assert!(!refused(401, matrix).is_away() && !refused(403, unknown).is_temporary());
    }

    #[test]
    fn the_header_is_read_in_seconds_and_bounded_and_the_body_comes_first() {
        let header = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(header("5"), Some(Duration::from_secs(5)));
        assert_eq!(header(" 0 "), Some(Duration::ZERO));
        assert_eq!(header("86400"), Some(MAX_RETRY_AFTER));
        for nonsense in ["", "-1", "1.5", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(header(nonsense), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);

        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = HomeserverError::refused(status, header("5"), b"<html>", "token");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
        let body = br#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1500}"#;
        let error = HomeserverError::refused(status, header("5"), body, "token");
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_body_that_is_not_json_still_makes_an_error() {
        let error = HomeserverError::refused(StatusCode::BAD_GATEWAY, None, b"<html>", "token");
        assert_eq!(error.errcode(), Some("M_UNKNOWN"));
        assert!(error.is_away());
        let error = HomeserverError::refused(
            StatusCode::BAD_GATEWAY,
            None,
            b"{\"errcode\":\"X\"}",
            "token",
        );
        assert!(!error.is_away());
    }

    #[test]
    fn the_wait_it_asks_for_is_read_and_bounded() {
        let body = br#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":1500}"#;
        let error = HomeserverError::refused(StatusCode::TOO_MANY_REQUESTS, None, body, "token");
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));

        let body = br#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":1e18}"#;
        let error = HomeserverError::refused(StatusCode::TOO_MANY_REQUESTS, None, body, "token");
        assert_eq!(error.retry_after(), Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn what_it_says_is_short_and_repeats_no_token() {
        let body = br#"{"errcode":"A B","error":"you sent\nBearer s3cret"}"#;
        let error = HomeserverError::refused(StatusCode::FORBIDDEN, None, body, "s3cret");
        let text = error.to_string();
        assert!(text.ends_with("403 M_UNKNOWN: you sent Bearer (our token)"), "{text}");
    }

    #[test]
    fn what_a_parser_quotes_is_short_and_repeats_no_token() {
        let secret = "s3\"cret";
        let answer = serde_json::json!(format!("Bearer {secret}\n{}", "long ".repeat(1000)));
        let quoted = serde_json::from_value::<Vec<String>>(answer).expect_err("no list");
        assert!(quoted.to_string().contains(r#"s3\"cret"#), "{quoted}");
        let text = HomeserverError::answer(&quoted.to_string(), secret).to_string();
        assert!(text.contains("Bearer (our token)") && !text.contains("cret"), "{text}");
        assert!(text.len() < 400 && !text.contains('\n'), "{text}");
    }
}
