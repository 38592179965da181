//! The Rust human's session: logging in with an identity, and syncing for as long as it lives.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use matrix_sdk::{
    Client, ClientBuilder,
    config::SyncSettings,
    ruma::{
        api::client::{
            filter::FilterDefinition,
            uiaa::{AuthData, MatrixUserIdentifier, Password, UserIdentifier},
        },
        uint,
    },
};
use matrix_sdk_crypto::{CollectStrategy, DecryptionSettings, TrustRequirement};
use tokio::task::JoinHandle;

use super::{LoginOptions, room_log::RoomLog};
use crate::support::synapse::Credentials;

/// Logs in on a new device that its owner's identity signs, and starts to sync.
pub(super) async fn open(
    account: &Credentials,
    options: LoginOptions,
) -> Result<(Client, Arc<RoomLog>, JoinHandle<()>)> {
    let client = builder(account, options).build().await?;
    client
        .matrix_auth()
        .login_username(&account.user_id, &account.password)
        .initial_device_display_name("a human on matrix-rust-sdk")
        .send()
        .await
        .context("logging in")?;
    // These ask for our own keys: an answer without an identity, if it came after the new one was made,
    // would undo our trust in that, and no verification of ours would vouch for it.
    client.encryption().wait_for_e2ee_initialization_tasks().await;
    bootstrap_cross_signing(&client, account).await.context("cross-signing")?;

    let log = Arc::new(RoomLog::default());
    // Once in the foreground: now others can find our device and its keys.
    let settings = sync_settings();
    let first = client.sync_once(settings.clone().timeout(Duration::ZERO)).await?;
    log.receive(&client, first).await;
    let own = client.user_id().context("logged in")?;
    let identity = client.encryption().get_user_identity(own).await?;
    ensure!(identity.is_some_and(|own| own.is_verified()), "{own} does not trust its own identity");
    let sync = tokio::spawn(sync_forever(client.clone(), settings, log.clone()));
    Ok((client, log, sync))
}

fn builder(account: &Credentials, options: LoginOptions) -> ClientBuilder {
    let builder = Client::builder().homeserver_url(&account.homeserver);
    if !options.exclude_insecure {
        return builder;
    }
    builder
        .with_room_key_recipient_strategy(CollectStrategy::IdentityBasedStrategy)
        .with_decryption_settings(DecryptionSettings {
            sender_device_trust_requirement: TrustRequirement::CrossSignedOrLegacy,
        })
}

/// A homeserver may ask for the password again before it takes an identity.
async fn bootstrap_cross_signing(client: &Client, account: &Credentials) -> Result<()> {
    let encryption = client.encryption();
    let Err(error) = encryption.bootstrap_cross_signing(None).await else {
        return Ok(());
    };
    let Some(challenge) = error.as_uiaa_response() else { bail!(error) };
    let user = MatrixUserIdentifier::new(account.user_id.clone());
    let mut password = Password::new(UserIdentifier::Matrix(user), account.password.clone());
    password.session.clone_from(&challenge.session);
    Ok(encryption.bootstrap_cross_signing(Some(AuthData::Password(password))).await?)
}

/// The long poll returns as soon as there is anything. The large timeline leaves no gaps.
fn sync_settings() -> SyncSettings {
    let mut filter = FilterDefinition::default();
    filter.room.timeline.limit = Some(uint!(100));
    SyncSettings::new().timeout(Duration::from_secs(20)).filter(filter.into())
}

/// Until the human is stopped. A homeserver may be down for a while in between.
async fn sync_forever(client: Client, settings: SyncSettings, log: Arc<RoomLog>) {
    loop {
        match client.sync_once(settings.clone()).await {
            Ok(news) => log.receive(&client, news).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
