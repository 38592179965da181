//! A request, taken apart.

use std::borrow::Cow;

use axum::{
    body::Bytes,
    http::{Method, Uri},
};

/// A request of the application service.
pub struct Call {
    pub method: Method,
    pub uri: Uri,
    pub body: Bytes,
}

impl Call {
    /// The decoded segments of the path.
    pub fn segments(&self) -> Vec<Cow<'_, str>> {
        self.uri.path().split('/').skip(1).map(decode).collect()
    }

    /// A decoded parameter.
    pub fn parameter(&self, name: &str) -> Cow<'_, str> {
        let query = self.uri.query().unwrap_or_default();
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.map_or(Cow::Borrowed(""), decode)
    }

    /// Whom the caller masquerades as.
    pub fn user(&self) -> Cow<'_, str> {
        self.parameter("user_id")
    }

    pub fn device(&self) -> Cow<'_, str> {
        self.parameter("device_id")
    }
}

/// Percent-decoding. What does not decode stays as it is.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}
