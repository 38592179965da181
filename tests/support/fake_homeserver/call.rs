//! A request, read.

use std::collections::HashMap;

use anyhow::Result;
use axum::extract::Request;
use serde_json::Value;

use super::Inner;

/// Why a call is refused.
pub struct Refusal {
    pub status: u16,
    pub errcode: &'static str,
    pub error: String,
}

pub type Answer = Result<Value, Refusal>;

pub fn refuse(status: u16, errcode: &'static str, error: impl Into<String>) -> Answer {
    Err(Refusal { status, errcode, error: error.into() })
}

/// A request.
pub struct Call {
    pub method: String,
    /// Decoded.
    pub path: String,
    pub segments: Vec<String>,
    pub query: HashMap<String, String>,
    pub body: Value,
    pub by_greenshield: bool,
}

/// What a test sees of a call of greenshield.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub user: String,
    pub body: Value,
    /// 0 where there was no whole answer by intention.
    pub status: u16,
    /// When it was answered.
    pub at: std::time::Instant,
}

impl Call {
    /// Whom the caller is, or masquerades as.
    pub fn user(&self) -> &str {
        self.query.get("user_id").map_or("", String::as_str)
    }

    pub fn device(&self) -> &str {
        self.query.get("device_id").map_or("", String::as_str)
    }

    /// What a transaction id is scoped to: the application service as a whole, as in Synapse.
    pub fn scope(&self) -> String {
        if self.by_greenshield {
            return format!("appservice {}", self.path);
        }
        format!("{} {} {}", self.user(), self.device(), self.path)
    }

    pub fn seen(&self, status: u16) -> Seen {
        Seen {
            method: self.method.clone(),
            path: self.path.clone(),
            user: self.user().to_owned(),
            body: self.body.clone(),
            status,
            at: std::time::Instant::now(),
        }
    }
}

pub(super) async fn read(inner: &Inner, request: Request) -> Result<Call> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await?;
    let segments: Vec<String> = parts.uri.path().split('/').skip(1).map(decode).collect();
    let query = parts.uri.query().unwrap_or_default();
    let token = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    let by_greenshield = inner.lock().appservice.as_ref().is_some_and(|appservice| {
        token.and_then(|token| token.strip_prefix("Bearer ")) == Some(&appservice.as_token)
    });
    Ok(Call {
        method: parts.method.to_string(),
        path: format!("/{}", segments.join("/")),
        segments,
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        by_greenshield,
    })
}

/// Percent-decoding, where `+` is a plus.
fn decode(segment: &str) -> String {
    let plus = segment.replace('+', "%2B");
    url::form_urlencoded::parse(plus.as_bytes()).next().map_or_else(String::new, |(key, value)| {
        if value.is_empty() { key.into_owned() } else { format!("{key}={value}") }
    })
}
