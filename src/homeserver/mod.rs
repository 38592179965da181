//! The client-server API of the homeserver, spoken as the application service.
//!
//! Every call is made with the `as_token` and, except for a few, masquerades as one of our bots
//! (`?user_id=`) and its device (`?device_id=`). Nothing here knows the database or the crypto: typed
//! requests go out, typed answers or a [`HomeserverError`] come back. An error says whether trying
//! again can help; who tries again, and when, is the worker's affair.
//!
//! - [`error`]: what can go wrong, in two kinds.
//! - [`calls`]: the calls that greenshield makes, one function each.
//! - [`to_device_inbox`]: fetching the to-device messages that a transaction should have brought.

mod calls;
mod error;
mod to_device_inbox;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use reqwest::Client;
use ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::{
        AppserviceUserIdentity, IncomingResponse as _, MatrixVersion, OutgoingRequest,
        OutgoingRequestAppserviceExt as _, SupportedVersions,
        auth_scheme::{AuthScheme, SendAccessToken},
        path_builder::PathBuilder,
    },
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use tokio::sync::Notify;
use url::Url;

use crate::model::foreign;

pub use self::{
    calls::{DirectRoom, Member},
    error::HomeserverError,
    to_device_inbox::ToDevicePage,
};

/// Answers above this size are refused: the largest ones are `/members` and `/keys/query`.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A bot to act as: its user and its device.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The bot's user id.
    pub user_id: OwnedUserId,
    /// Its device, asserted on every call (MSC4326).
    pub device_id: OwnedDeviceId,
}

/// Whom a call is made as.
#[derive(Clone, Copy, Debug)]
pub enum As<'a> {
    /// The application service itself (its `sender_localpart`).
    Service,
    /// A user of the namespace, without a device: before the device exists.
    User(&'a UserId),
    /// A bot on its device.
    Bot(&'a Actor),
}

impl<'a> From<&'a Actor> for As<'a> {
    fn from(actor: &'a Actor) -> Self {
        Self::Bot(actor)
    }
}

/// The homeserver; cheap to clone.
#[derive(Clone)]
pub struct Homeserver {
    client: Client,
    base_url: Url,
    as_token: SecretString,
    trouble: Arc<Notify>,
}

impl Homeserver {
    /// The homeserver at `base_url`, for the application service that holds `as_token`. A call may take
    /// `timeout`; key queries and claims may wait for other servers, so be generous.
    ///
    /// # Errors
    ///
    /// Only if the HTTP client cannot be set up (no TLS roots).
    #[expect(clippy::disallowed_methods, reason = "the one rightful caller")]
    pub fn new(
        base_url: &Url,
        as_token: SecretString,
        timeout: Duration,
    ) -> Result<Self, HomeserverError> {
        let client = Client::builder()
            .user_agent(concat!("greenshield/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            .build()
            .map_err(HomeserverError::Unreachable)?;
        let trouble = Arc::default();
        Ok(Self { client, base_url: base_url.clone(), as_token, trouble })
    }

    /// Waits for a call that finds the homeserver away, unless there was one since this was last called.
    pub async fn trouble(&self) {
        self.trouble.notified().await;
    }

    /// Forgets the calls so far that found the homeserver away: it is not any more.
    pub fn forget_trouble(&self) {
        let _ = self.trouble.notified().now_or_never();
    }

    /// Sends a typed request as a bot (or the service).
    ///
    /// # Errors
    ///
    /// [`HomeserverError`], which knows whether to try again.
    pub async fn send<R>(
        &self,
        as_: As<'_>,
        request: R,
    ) -> Result<R::IncomingResponse, HomeserverError>
    where
        R: OutgoingRequest,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
    {
        let identity = match as_ {
            As::Service => AppserviceUserIdentity::default(),
            As::User(user_id) => AppserviceUserIdentity::new(user_id),
            As::Bot(actor) => {
                let mut identity = AppserviceUserIdentity::new(&actor.user_id);
                identity.device_id = Some(&actor.device_id);
                identity
            }
        };
        let request = request
            .try_into_http_request_with_identity::<Vec<u8>>(
                self.base_url.as_str(),
                SendAccessToken::Appservice(self.as_token.expose_secret()),
                identity,
                Cow::Owned(versions()),
            )
            .map_err(|e| HomeserverError::Request(e.to_string()))?;
        let request = reqwest::Request::try_from(request)
            .map_err(|e| HomeserverError::Request(e.to_string()))?;
        let answer = self.execute(request).await?;
        R::IncomingResponse::try_from_http_response(answer)
            .map_err(|e| self.not_understood(&e.to_string()))
    }

    /// That an answer could not be understood, told without our token.
    fn not_understood(&self, why: &str) -> HomeserverError {
        HomeserverError::answer(why, self.as_token.expose_secret())
    }

    /// Sends a request whose body and answer are plain JSON; `path` is a list of segments.
    async fn json(
        &self,
        method: reqwest::Method,
        path: &[&str],
        query: &[(&str, &str)],
        as_: As<'_>,
        body: Option<&impl Serialize>,
    ) -> Result<Value, HomeserverError> {
        self.typed(method, path, query, as_, body).await
    }

    /// [`Homeserver::json`] for an answer of which only a part is read: in what else is in it, anybody
    /// may have put numbers and depths that would not parse.
    async fn typed<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &[&str],
        query: &[(&str, &str)],
        as_: As<'_>,
        body: Option<&impl Serialize>,
    ) -> Result<T, HomeserverError> {
        let mut url = self.base_url.clone();
        url.path_segments_mut()
            .map_err(|()| HomeserverError::Request("homeserver.url has no path".to_owned()))?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        match as_ {
            As::Service => {}
            As::User(user_id) => {
                url.query_pairs_mut().append_pair("user_id", user_id.as_str());
            }
            As::Bot(actor) => {
                url.query_pairs_mut()
                    .append_pair("user_id", actor.user_id.as_str())
                    .append_pair("device_id", actor.device_id.as_str());
            }
        }
        let mut request =
            self.client.request(method, url).bearer_auth(self.as_token.expose_secret());
        if let Some(body) = body {
            request = request.json(body);
        }
        let request = request.build().map_err(HomeserverError::Unreachable)?;
        let answer = self.execute(request).await?;
        serde_json::from_slice(answer.body()).map_err(|e| self.not_understood(&e.to_string()))
    }

    /// Sends, and turns every answer that is not a success into an error.
    async fn execute(
        &self,
        request: reqwest::Request,
    ) -> Result<http::Response<Bytes>, HomeserverError> {
        let answer = self.answer(request).await;
        if answer.as_ref().is_err_and(HomeserverError::is_away) {
            self.trouble.notify_one();
        }
        answer
    }

    async fn answer(
        &self,
        request: reqwest::Request,
    ) -> Result<http::Response<Bytes>, HomeserverError> {
        let mut answer =
            self.client.execute(request).await.map_err(HomeserverError::Unreachable)?;
        let status = answer.status();
        let retry_after = error::retry_after(answer.headers());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(HomeserverError::Unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(self.not_understood("the answer is too large"));
            }
            body.extend_from_slice(&chunk);
        }
        if let Cow::Owned(clean) = foreign::without_nul(&body) {
            body = clean;
        }
        if !status.is_success() {
            let secret = self.as_token.expose_secret();
            return Err(HomeserverError::refused(status, retry_after, &body, secret));
        }
        // Every answer is a JSON object. Some are read no further: a page of a proxy must not pass for
        // one of those, or a room key would count as sent.
        if serde_json::from_slice::<BTreeMap<String, &RawValue>>(&body).is_err() {
            return Err(self.not_understood("it is not a JSON object"));
        }
        http::Response::builder()
            .status(status)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .map_err(|e| self.not_understood(&e.to_string()))
    }
}

/// The paths of v1.11 are in every homeserver that can carry us (Synapse 1.141 and later).
fn versions() -> SupportedVersions {
    SupportedVersions {
        versions: [MatrixVersion::V1_1, MatrixVersion::V1_11].into(),
        features: std::collections::BTreeSet::default(),
    }
}
