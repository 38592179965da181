//! The transaction that begins or resumes a signup, the waiting, and the answer.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::{
    Signup, errors,
    rules::{self, Wish},
    wire::{Proof, SignupAnswer, SignupRequest},
};
use crate::{
    model::{BotId, SignupId},
    secret::{self, Alphabet},
    store::{Signal, StoreError, bots, codes, outbox, queue, signups, tokens},
    web::{ApiError, ClientAddr},
};

/// How often the row is read again when no signal comes.
const SLOWLY: Duration = Duration::from_secs(1);
/// The outbox id of the first message, which the worker sends.
const INTRO_TXN: &str = "signup-intro";

impl Signup {
    /// Makes the bot that `request` asks for, or finds it, and waits until it is whole.
    ///
    /// # Errors
    ///
    /// Whatever rule is broken or step fails.
    pub(super) async fn sign_up(
        &self,
        client: ClientAddr,
        request: &SignupRequest,
        key: Option<&str>,
    ) -> Result<SignupAnswer, ApiError> {
        if !self.settings.enabled {
            return Err(errors::disabled());
        }
        self.settings.attempts.sign_up(client)?;
        let wish = Wish::new(request, &self.settings.localpart_prefix, &self.settings.server_name)?;
        let code = secret::digest(request.code.trim());
        let key = key.map(secret::digest);
        let bot = self.begin(&wish, &code, key.as_ref()).await?;
        let signup = match self.wait(bot, |signup| signup.finished_at.is_some()).await? {
            Outcome::Done(signup) => signup,
            Outcome::Failed(signup, error) => {
                self.take_back(&signup).await?;
                return Err(error);
            }
        };
        self.answer(&signup).await
    }

    /// One transaction: a use of the code becomes a bot, or a repeated call takes its bot up again.
    async fn begin(
        &self,
        wish: &Wish,
        code: &[u8; 32],
        key: Option<&[u8; 32]>,
    ) -> Result<BotId, ApiError> {
        let now = self.clock.now();
        let device_id = secret::random_string(Alphabet::Upper, 10).map_err(ApiError::internal)?;
        let mut tx = self.store.pool().begin().await.map_err(StoreError::from)?;
        let code = rules::known(codes::hold(&mut tx, code).await?)?;
        self.settings.attempts.code(code.id)?;
        let bot = match signups::by_user(&mut tx, &wish.user_id).await? {
            Some(signup) if rules::is_repetition(&signup, &code, key) => {
                signups::resume(&mut tx, signup.id).await?;
                signup.bot
            }
            existing => {
                rules::usable(&code, now)?;
                if existing.is_some() {
                    return Err(errors::taken());
                }
                if !codes::use_once(&mut tx, code.id).await? {
                    return Err(rules::used_up());
                }
                let new = signups::NewSignup {
                    code: code.id,
                    username: &wish.username,
                    user_id: &wish.user_id,
                    device_id: &format!("GS{device_id}"),
                    display_name: &wish.display_name,
                    verification_policy: self.settings.verification_policy,
                    idempotency_hash: key,
                    inviter: &code.inviter,
                    intro: &wish.intro,
                };
                let inserted = signups::insert(&mut tx, self.store.sealer(), new, now).await?;
                inserted.ok_or_else(errors::taken)?.1
            }
        };
        queue::wake_everywhere(&mut tx, &[bot], now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(bot)
    }

    /// Waits, a bounded time, until the signup of `bot` is as `done` wants it, or has failed for good.
    ///
    /// # Errors
    ///
    /// If the time is over.
    pub(super) async fn wait(
        &self,
        bot: BotId,
        done: impl Fn(&signups::Signup) -> bool,
    ) -> Result<Outcome, ApiError> {
        let deadline = Instant::now() + self.settings.wait;
        let mut progress = self.signals.subscribe(Signal::Progress);
        loop {
            progress.mark_unchanged();
            let mut conn = self.store.pool().acquire().await.map_err(StoreError::from)?;
            let signup = signups::by_bot(&mut conn, bot).await?;
            drop(conn);
            // Taken back by another call that waited for the same bot.
            let signup = signup.ok_or_else(errors::taken)?;
            if done(&signup) {
                return Ok(Outcome::Done(signup));
            }
            if let Some(failure) = signup.failure.as_ref().filter(|failure| !failure.retry) {
                let error = errors::failed(&signup, failure);
                return Ok(Outcome::Failed(signup, error));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(errors::unfinished(&signup));
            }
            let again = deadline.min(now + SLOWLY);
            // It does not matter which of the two it was: the row is what counts.
            let _ = tokio::time::timeout_at(again, progress.changed()).await;
        }
    }

    /// A name that the homeserver does not give us has cost no use of the code.
    async fn take_back(&self, signup: &signups::Signup) -> Result<(), ApiError> {
        let in_use = signup.failure.as_ref().is_some_and(|f| f.errcode == "M_USER_IN_USE");
        if in_use && !signup.has("user") {
            let mut conn = self.store.pool().acquire().await.map_err(StoreError::from)?;
            signups::take_back(&mut conn, signup.id).await?;
        }
        Ok(())
    }

    /// The whole answer; the same however often it is asked for.
    async fn answer(&self, signup: &signups::Signup) -> Result<SignupAnswer, ApiError> {
        let now = self.clock.now();
        let token = self.token(signup.id);
        let hash = secret::digest(&token);
        let mut tx = self.store.pool().begin().await.map_err(StoreError::from)?;
        tokens::insert(&mut tx, signup.bot, &hash, "signup", now).await?;
        if tokens::bot_of(&mut tx, &hash).await? != Some(signup.bot) {
            return Err(errors::token_revoked());
        }
        let identity = bots::identity(&mut tx, signup.bot).await?;
        let identity = identity.ok_or_else(|| ApiError::internal("a bot without identity"))?;
        let intro_text = signups::intro(&mut tx, self.store.sealer(), signup.bot).await?;
        let sent = outbox::outcome(&mut tx, signup.bot, INTRO_TXN).await?;
        let sent = sent.and_then(Result::ok);
        signups::answered(&mut tx, signup.id, now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(SignupAnswer {
            user_id: signup.user_id.clone(),
            device_id: signup.device_id.clone(),
            access_token: token,
            homeserver: self.settings.server_name.clone(),
            space_id: signup.space_id.clone(),
            dm_room: signup.dm_room.clone(),
            intro_text,
            msk_public: identity.master_key,
            steps: signup.steps.clone(),
            proof: Proof {
                event_id: sent.as_ref().map(|sent| sent.event_id.clone()),
                session_id: sent.as_ref().and_then(|sent| sent.session_id.clone()),
                devices: sent.and_then(|sent| sent.devices),
            },
        })
    }

    /// The token of a signup: derived, so that a repeated call is given the same one and the database
    /// holds no more than its digest.
    fn token(&self, signup: SignupId) -> String {
        let hash = self.store.sealer().hash("bot_tokens", &signup.0.to_be_bytes());
        format!("gsb_{}", URL_SAFE_NO_PAD.encode(hash))
    }

    /// The bot that a token speaks for.
    ///
    /// # Errors
    ///
    /// `M_UNKNOWN_TOKEN` if there is none.
    pub(super) async fn bot_of(&self, token: &secrecy::SecretString) -> Result<BotId, ApiError> {
        let hash = secret::digest(token.expose_secret());
        let mut conn = self.store.pool().acquire().await.map_err(StoreError::from)?;
        tokens::bot_of(&mut conn, &hash).await?.ok_or_else(ApiError::unknown_token)
    }
}

/// How a wait ended.
pub(super) enum Outcome {
    /// As it was wanted.
    Done(signups::Signup),
    /// A step failed for good.
    Failed(signups::Signup, ApiError),
}
