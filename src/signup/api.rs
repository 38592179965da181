//! `POST /signup/api`

use axum::{Json, extract::State};
use http::{HeaderMap, header};

use super::{
    Signup, rules,
    wire::{ErrorBody, SignupAnswer, SignupRequest},
};
use crate::web::{ApiError, ClientAddr, MatrixJson};

/// Makes a bot: its user, device, keys, identity and profile, and an encrypted direct room with the
/// human who invited it. Waits until all of it is done, up to a minute.
///
/// Sent again with the same code, username and `Idempotency-Key`, it goes on where it was and answers
/// with the same bot.
#[utoipa::path(
    post,
    path = "/signup/api",
    tag = "signup",
    request_body = SignupRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Random; the same when repeated.")),
    responses(
        (status = 200, description = "The bot.", body = SignupAnswer),
        (status = 400, description = "M_NOT_JSON, M_BAD_JSON, M_MISSING_PARAM, M_INVALID_PARAM, \
                                      GREENSHIELD_BAD_USERNAME", body = ErrorBody),
        (status = 403, description = "GREENSHIELD_INVALID_CODE", body = ErrorBody),
        (status = 409, description = "M_USER_IN_USE", body = ErrorBody),
        (status = 429, description = "M_LIMIT_EXCEEDED", body = ErrorBody),
        (status = 502, description = "GREENSHIELD_HOMESERVER_UNREACHABLE, or the homeserver's own: \
                                      `steps` tells how far it got", body = ErrorBody),
        (status = 503, description = "GREENSHIELD_SIGNUP_DISABLED", body = ErrorBody),
    ),
)]
pub(super) async fn sign_up(
    State(signup): State<Signup>,
    client: ClientAddr,
    headers: HeaderMap,
    MatrixJson(request): MatrixJson<SignupRequest>,
) -> Result<([(header::HeaderName, &'static str); 1], Json<SignupAnswer>), ApiError> {
    let key = rules::idempotency_key(headers.get("idempotency-key"))?;
    let answer = signup.sign_up(client, &request, key).await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)))
}
