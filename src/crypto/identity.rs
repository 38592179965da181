//! The cross-signing identity of a bot: made once, kept apart from the Olm account, never replaced.

use matrix_sdk_crypto::{CrossSigningKeyExport, types::requests::AnyOutgoingRequest};
use ruma::{
    OwnedTransactionId,
    api::client::keys::{upload_keys, upload_signatures, upload_signing_keys},
    serde::Raw,
};
use serde_json::Value;
use vodozemac::Ed25519SecretKey;

use super::{BotMachine, CryptoError};
use crate::store::bots::{IdentitySecrets, PublicIdentity};

/// What is to be published, in this order, for a bot to have an identity and a device signed by it.
pub struct IdentityUpload {
    /// Public halves, for the database.
    pub public: PublicIdentity,
    /// Private halves, for the database.
    pub secrets: IdentitySecrets,
    /// First: the identity.
    pub signing_keys: upload_signing_keys::v3::Request,
    /// Then the device with its one-time keys. It carries the identity's signature already, so there
    /// is no moment in which anybody can see it unsigned. `None` if it was published before.
    pub device_keys: Option<(OwnedTransactionId, upload_keys::v3::Request)>,
    /// Last, the same signature the ordinary way, and the device's signature of the master key.
    pub signatures: upload_signatures::v3::Request,
}

impl BotMachine {
    /// Makes the identity if there is none, or takes the one there is; saved when this returns.
    ///
    /// `stored` is what the database keeps of it. If the crypto store has lost its copy, the stored one
    /// comes back; this never makes a second identity.
    ///
    /// # Errors
    ///
    /// If the store fails, or the stored identity cannot be brought back.
    pub async fn identity_upload(
        &self,
        stored: Option<IdentitySecrets>,
    ) -> Result<IdentityUpload, CryptoError> {
        if let Some(stored) = stored
            && !self.has_identity().await
        {
            self.restore_identity(&stored).await?;
        }
        let requests = self.machine.bootstrap_cross_signing(false).await?;
        let secrets = self.identity_secrets().await?;
        let public = public_identity(&requests.upload_signing_keys_req)?;

        let mut signing_keys = upload_signing_keys::v3::Request::new();
        signing_keys.master_key = requests.upload_signing_keys_req.master_key.map(|k| k.to_raw());
        signing_keys.self_signing_key =
            requests.upload_signing_keys_req.self_signing_key.map(|k| k.to_raw());
        signing_keys.user_signing_key =
            requests.upload_signing_keys_req.user_signing_key.map(|k| k.to_raw());

        let device_keys = match requests.upload_keys_req {
            Some(request) => match request.request() {
                AnyOutgoingRequest::KeysUpload(upload) => {
                    let mut upload = upload.clone();
                    self.sign_device_keys(&mut upload, &requests.upload_signatures_req)?;
                    Some((request.request_id().to_owned(), upload))
                }
                _ => None,
            },
            None => None,
        };
        Ok(IdentityUpload {
            public,
            secrets,
            signing_keys,
            device_keys,
            signatures: requests.upload_signatures_req,
        })
    }

    /// Copies the self-signing key's signature, made for `/keys/signatures/upload`, into the device
    /// keys themselves.
    fn sign_device_keys(
        &self,
        upload: &mut upload_keys::v3::Request,
        signatures: &upload_signatures::v3::Request,
    ) -> Result<(), CryptoError> {
        let Some(device_keys) = &upload.device_keys else { return Ok(()) };
        let mut device_keys: Value = serde_json::from_str(device_keys.json().get())?;
        let signed = signatures
            .signed_keys
            .get(self.machine.user_id())
            .into_iter()
            .flat_map(|keys| keys.iter())
            .find(|(key_id, _)| *key_id == self.machine.device_id().as_str());
        let Some((_, signed)) = signed else {
            return Err(CryptoError::Identity("the device was not signed".to_owned()));
        };
        let signed: Value = serde_json::from_str(signed.get())?;
        let user = self.machine.user_id().as_str();
        let new = signed.get("signatures").and_then(|s| s.get(user)).and_then(Value::as_object);
        let ours = device_keys
            .get_mut("signatures")
            .and_then(|s| s.get_mut(user))
            .and_then(Value::as_object_mut);
        let (Some(new), Some(ours)) = (new, ours) else {
            return Err(CryptoError::Identity("the device keys carry no signatures".to_owned()));
        };
        ours.extend(new.iter().map(|(key, signature)| (key.clone(), signature.clone())));
        upload.device_keys = Some(Raw::from_json(serde_json::value::to_raw_value(&device_keys)?));
        Ok(())
    }

    /// Whether the machine has all of the private identity.
    pub async fn has_identity(&self) -> bool {
        let status = self.machine.cross_signing_status().await;
        status.has_master && status.has_self_signing && status.has_user_signing
    }

    /// Brings the private identity back into a machine that has lost it. The machine takes it only if
    /// it has seen the public one.
    ///
    /// # Errors
    ///
    /// If the store fails, or the public identity that the machine has seen is another one.
    pub async fn restore_identity(&self, stored: &IdentitySecrets) -> Result<(), CryptoError> {
        let status = self
            .machine
            .import_cross_signing_keys(CrossSigningKeyExport {
                master_key: Some(stored.master.clone()),
                self_signing_key: Some(stored.self_signing.clone()),
                user_signing_key: Some(stored.user_signing.clone()),
            })
            .await
            .map_err(|error| CryptoError::Identity(error.to_string()))?;
        if status.has_master && status.has_self_signing && status.has_user_signing {
            return Ok(());
        }
        Err(CryptoError::Identity(
            "the homeserver publishes another identity for this bot than ours".to_owned(),
        ))
    }

    /// The machine's copy of the private identity.
    ///
    /// # Errors
    ///
    /// If the store fails, or the machine has not all of it.
    pub async fn identity_secrets(&self) -> Result<IdentitySecrets, CryptoError> {
        let incomplete = || CryptoError::Identity("the identity is incomplete".to_owned());
        let export = self.machine.export_cross_signing_keys().await?.ok_or_else(incomplete)?;
        Ok(IdentitySecrets {
            master: export.master_key.clone().ok_or_else(incomplete)?,
            self_signing: export.self_signing_key.clone().ok_or_else(incomplete)?,
            user_signing: export.user_signing_key.clone().ok_or_else(incomplete)?,
        })
    }
}

/// Whether these are the private halves of `public`.
#[must_use]
pub fn is_identity_of(secrets: &IdentitySecrets, public: &PublicIdentity) -> bool {
    let is = |secret: &str, public: &str| {
        Ed25519SecretKey::from_base64(secret)
            .is_ok_and(|secret| secret.public_key().to_base64() == public)
    };
    is(&secrets.master, &public.master_key)
        && is(&secrets.self_signing, &public.self_signing_key)
        && is(&secrets.user_signing, &public.user_signing_key)
}

fn public_identity(
    request: &matrix_sdk_crypto::types::requests::UploadSigningKeysRequest,
) -> Result<PublicIdentity, CryptoError> {
    let key = |key: Option<&matrix_sdk_crypto::types::CrossSigningKey>| {
        key.and_then(|key| key.get_first_key_and_id())
            .map(|(_, key)| key.to_base64())
            .ok_or_else(|| CryptoError::Identity("a public key is missing".to_owned()))
    };
    Ok(PublicIdentity {
        master_key: key(request.master_key.as_ref())?,
        self_signing_key: key(request.self_signing_key.as_ref())?,
        user_signing_key: key(request.user_signing_key.as_ref())?,
    })
}
