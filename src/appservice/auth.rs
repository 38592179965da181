//! Is it the homeserver? The `hs_token`, compared in constant time.

use axum::extract::FromRequestParts;
use http::request::Parts;
use secrecy::ExposeSecret as _;

use super::AppserviceState;
use crate::{
    secret,
    web::{ApiError, Bearer},
};

/// Proof that the caller showed the `hs_token`.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromHomeserver;

impl FromRequestParts<AppserviceState> for FromHomeserver {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AppserviceState,
    ) -> Result<Self, ApiError> {
        let Bearer(token) =
            <Bearer as FromRequestParts<AppserviceState>>::from_request_parts(parts, state).await?;
        if secret::equal(token.expose_secret(), state.hs_token.expose_secret()) {
            return Ok(Self);
        }
        Err(ApiError::forbidden(
            "This is not our hs_token: give the homeserver the registration file that greenshield \
             was started with, and restart the homeserver",
        ))
    }
}
