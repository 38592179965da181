//! `POST /signup/api/crosssign`

use axum::{Json, extract::State};
use secrecy::SecretString;

use super::{
    Signup,
    flow::Outcome,
    wire::{CrosssignAnswer, CrosssignRequest, ErrorBody},
};
use crate::{
    model::{self, BotId},
    store::{StoreError, bots, queue, signups},
    web::{ApiError, Bearer, ClientAddr, MatrixBytes, MatrixJson},
};

/// Tells a bot's cross-signing identity, and that its device is signed by it; finishes that if it is
/// not so yet. Never makes a second identity.
#[utoipa::path(
    post,
    path = "/signup/api/crosssign",
    tag = "signup",
    request_body = Option<CrosssignRequest>,
    params(("Authorization" = Option<String>, Header, description = "Bearer and the bot's token.")),
    responses(
        (status = 200, description = "The identity.", body = CrosssignAnswer),
        (status = 400, description = "M_NOT_JSON, M_BAD_JSON", body = ErrorBody),
        (status = 401, description = "M_MISSING_TOKEN, M_UNKNOWN_TOKEN", body = ErrorBody),
        (status = 429, description = "M_LIMIT_EXCEEDED", body = ErrorBody),
        (status = 502, description = "GREENSHIELD_HOMESERVER_UNREACHABLE, or the homeserver's own",
         body = ErrorBody),
    ),
)]
pub(super) async fn crosssign(
    State(signup): State<Signup>,
    client: ClientAddr,
    bearer: Option<Bearer>,
    MatrixBytes(body): MatrixBytes,
) -> Result<Json<CrosssignAnswer>, ApiError> {
    signup.settings.attempts.token(client)?;
    // With the header, the body may be left out.
    let request = match bearer {
        Some(_) if body.is_empty() => CrosssignRequest::default(),
        None if body.is_empty() => return Err(ApiError::missing_token()),
        _ => MatrixJson::parse_bytes(&body)?.0,
    };
    let token = request.access_token.map(SecretString::from).or(bearer.map(|bearer| bearer.0));
    let bot = signup.bot_of(&token.ok_or_else(ApiError::missing_token)?).await?;
    signup.identity(bot).await.map(Json)
}

impl Signup {
    async fn identity(&self, bot: BotId) -> Result<CrosssignAnswer, ApiError> {
        let mut conn = self.store.pool().acquire().await.map_err(StoreError::from)?;
        let row = bots::load(&mut conn, bot).await?.ok_or_else(ApiError::unknown_token)?;
        let signup = signups::by_bot(&mut conn, bot).await?;
        if let Some(unsigned) = signup.filter(|signup| !is_signed(signup)) {
            signups::resume(&mut conn, unsigned.id).await?;
            queue::wake_everywhere(&mut conn, &[bot], self.clock.now()).await?;
            drop(conn);
            if let Outcome::Failed(_, error) = self.wait(bot, is_signed).await? {
                return Err(error);
            }
            conn = self.store.pool().acquire().await.map_err(StoreError::from)?;
        }
        let identity = bots::identity(&mut conn, bot).await?;
        let identity = identity.ok_or_else(|| ApiError::internal("a bot without identity"))?;
        Ok(CrosssignAnswer {
            user_id: row.user_id,
            device_id: row.device_id,
            fingerprint: model::fingerprint(&identity.master_key),
            msk_public: identity.master_key,
            ssk_public: identity.self_signing_key,
            usk_public: identity.user_signing_key,
            device_signed: true,
        })
    }
}

/// The identity is at the homeserver, and so are the device's keys with its signature.
fn is_signed(signup: &signups::Signup) -> bool {
    signup.has("identity") && signup.has("keys")
}
