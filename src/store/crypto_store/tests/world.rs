//! One of everything that a store holds.

use std::collections::{BTreeMap, HashMap, HashSet};

use matrix_sdk_crypto::{
    DeviceData, GossipRequest, SecretInfo,
    olm::{
        Account, InboundGroupSession, OlmMessageHash, OutboundGroupSession,
        PrivateCrossSigningIdentity, SenderData, SenderDataType, Session,
    },
    store::{
        CryptoStore as _,
        types::{
            BackupDecryptionKey, Changes, DehydratedDeviceKey, DeviceChanges, IdentityChanges,
            PendingChanges, RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
            SecretsInboxItem, StoredRoomKeyBundleData,
        },
    },
    testing::{get_other_identity, get_own_identity},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedTransactionId, RoomId, TransactionId, UserId, device_id,
    events::secret::request::SecretName, room_id, user_id,
};
use serde_json::json;
use vodozemac::olm::SessionConfig;

use super::super::PgCryptoStore;

/// What a bot would know, with ids that another bot could have as well.
pub(super) struct World {
    pub(super) account: Account,
    other_device: DeviceData,
    pub(super) session: Session,
    pub(super) inbound: InboundGroupSession,
    pub(super) outbound: OutboundGroupSession,
    pub(super) request_id: OwnedTransactionId,
    pub(super) hash: OlmMessageHash,
    pub(super) secret: String,
}

pub(super) const CUSTOM: &str = "custom";
pub(super) const VERSION: &str = "backup-1";

pub(super) fn room() -> &'static RoomId {
    room_id!("!room:example.org")
}

pub(super) fn own_user() -> &'static UserId {
    user_id!("@bot:example.org")
}

pub(super) fn other_user() -> &'static UserId {
    user_id!("@other:example.org")
}

fn info() -> SecretInfo {
    SecretName::RecoveryKey.into()
}

impl World {
    pub(super) async fn new() -> Self {
        let account = Account::with_device_id(own_user(), device_id!("BOT"));
        let mut other = Account::with_device_id(other_user(), device_id!("OTHER"));
        other.generate_one_time_keys(1);
        let one_time_key = *other.one_time_keys().values().next().expect("a one-time key");
        let session = account
            .create_outbound_session_helper(
                SessionConfig::default(),
                other.identity_keys().curve25519,
                one_time_key,
                false,
                account.device_keys(),
            )
            .expect("a session");
        let (outbound, mut inbound) = account.create_group_session_pair_with_defaults(room()).await;
        inbound.sender_data = SenderData::unknown();
        Self {
            account,
            other_device: DeviceData::from_account(&other),
            session,
            inbound,
            outbound,
            request_id: TransactionId::new(),
            hash: OlmMessageHash { sender_key: "sender".to_owned(), hash: "hash".to_owned() },
            secret: "a-secret-for-the-inbox".to_owned(),
        }
    }

    /// Another room key.
    pub(super) async fn room_key(&self, room_id: &RoomId) -> InboundGroupSession {
        self.account.create_group_session_pair_with_defaults(room_id).await.1
    }

    pub(super) fn changes(&self) -> Changes {
        let bundle: StoredRoomKeyBundleData = serde_json::from_value(json!({
            "sender_user": other_user(),
            "sender_key": self.session.sender_key(),
            "sender_data": SenderData::unknown(),
            "bundle_data": { "room_id": room(), "file": {
                "url": "mxc://example.org/bundle", "v": "v2",
                "key": {
                    "kty": "oct", "key_ops": ["encrypt", "decrypt"], "alg": "A256CTR",
                    "k": "qcHVMSgYg-71CauWBezXI5qkaRb0LuIy-Wx5kIaHMIA", "ext": true,
                },
                "iv": "X85+XgHN+HEAAAAAAAAAAA",
                "hashes": { "sha256": "5qG4fFnbbVdlAB1Q72JDKwCagV6Dbkx9uds4rSak37c" },
            } },
        }))
        .expect("a bundle");
        let withheld: RoomKeyWithheldEntry = serde_json::from_value(json!({
            "sender": other_user(),
            "content": {
                "algorithm": "m.megolm.v1.aes-sha2",
                "code": "m.blacklisted",
                "reason": "no",
                "room_id": room(),
                "session_id": "withheld",
                "sender_key": self.session.sender_key().to_base64(),
            },
        }))
        .expect("a withheld entry");
        let pending = RoomPendingKeyBundleDetails {
            room_id: room().to_owned(),
            invite_accepted_at: MilliSecondsSinceUnixEpoch::now(),
            inviter: other_user().to_owned(),
        };
        Changes {
            private_identity: Some(PrivateCrossSigningIdentity::new(own_user().to_owned())),
            backup_version: Some(VERSION.to_owned()),
            backup_decryption_key: Some(BackupDecryptionKey::new()),
            dehydrated_device_pickle_key: Some(DehydratedDeviceKey::new()),
            sessions: vec![self.session.clone()],
            message_hashes: vec![self.hash.clone()],
            inbound_group_sessions: vec![self.inbound.clone()],
            outbound_group_sessions: vec![self.outbound.clone()],
            key_requests: vec![GossipRequest {
                request_recipient: own_user().to_owned(),
                request_id: self.request_id.clone(),
                info: info(),
                sent_out: false,
            }],
            identities: IdentityChanges {
                new: vec![get_own_identity().into(), get_other_identity().into()],
                ..Default::default()
            },
            devices: DeviceChanges {
                new: vec![DeviceData::from_account(&self.account), self.other_device.clone()],
                ..Default::default()
            },
            withheld_session_info: BTreeMap::from([(
                room().to_owned(),
                BTreeMap::from([("withheld".to_owned(), withheld)]),
            )]),
            room_settings: HashMap::from([(room().to_owned(), RoomSettings::default())]),
            secrets: vec![SecretsInboxItem {
                secret_name: SecretName::RecoveryKey,
                secret: self.secret.clone().into(),
            }],
            next_batch_token: Some("token".to_owned()),
            received_room_key_bundles: vec![bundle],
            room_key_backups_fully_downloaded: HashSet::from([room().to_owned()]),
            rooms_pending_key_bundle: HashMap::from([(room().to_owned(), Some(pending))]),
        }
    }

    /// Puts all of it into `store`.
    pub(super) async fn fill(&self, store: &PgCryptoStore) {
        let account = Some(self.account.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.expect("saves the account");
        store.save_changes(self.changes()).await.expect("saves");
        store.save_tracked_users(&[(other_user(), true)]).await.expect("saves");
        store.set_custom_value(CUSTOM, b"value".to_vec()).await.expect("saves");
        let lock = store.try_take_leased_lock(60_000, "lock", "holder").await.expect("locks");
        assert_eq!(lock, Some(1));
        let session = (self.inbound.room_id(), self.inbound.session_id());
        store.mark_inbound_group_sessions_as_backed_up(VERSION, &[session]).await.expect("marks");
    }

    /// Deletes all that a store can be told to delete.
    pub(super) async fn delete_from(&self, store: &PgCryptoStore) {
        let changes = Changes {
            devices: DeviceChanges {
                deleted: vec![self.other_device.clone()],
                ..Default::default()
            },
            rooms_pending_key_bundle: HashMap::from([(room().to_owned(), None)]),
            ..Default::default()
        };
        store.save_changes(changes).await.expect("deletes");
        store.delete_outgoing_secret_requests(&self.request_id).await.expect("deletes");
        store.delete_secrets_from_inbox(&SecretName::RecoveryKey).await.expect("deletes");
        store.delete_dehydrated_device_pickle_key().await.expect("deletes");
        store.remove_custom_value(CUSTOM).await.expect("deletes");
        store.reset_backup_state().await.expect("resets");
    }

    /// How much of it each getter finds in `store`.
    pub(super) async fn seen_by(&self, store: &PgCryptoStore) -> BTreeMap<&'static str, usize> {
        let sender_key = self.session.sender_key().to_base64();
        let session_id = self.inbound.session_id();
        let creator = self.inbound.sender_key();
        let device_id = self.account.device_id();
        let keys = store.load_backup_keys().await.expect("reads");
        let counts = store.inbound_group_session_counts(Some(VERSION)).await.expect("reads");
        macro_rules! some {
            ($call:expr) => {
                usize::from($call.await.expect("reads").is_some())
            };
        }
        macro_rules! len {
            ($call:expr) => {
                $call.await.expect("reads").len()
            };
        }
        macro_rules! yes {
            ($call:expr) => {
                usize::from($call.await.expect("reads"))
            };
        }
        BTreeMap::from([
            ("account", some!(store.load_account())),
            ("private identity", some!(store.load_identity())),
            ("backup version", usize::from(keys.backup_version.is_some())),
            ("backup key", usize::from(keys.decryption_key.is_some())),
            ("dehydrated", some!(store.load_dehydrated_device_pickle_key())),
            ("sessions", some!(store.get_sessions(&sender_key))),
            ("inbound", some!(store.get_inbound_group_session(room(), session_id))),
            ("all inbound", len!(store.get_inbound_group_sessions())),
            ("inbound of room", len!(store.get_inbound_group_sessions_by_room_id(room()))),
            (
                "inbound of device",
                len!(store.get_inbound_group_sessions_for_device_batch(
                    creator,
                    SenderDataType::UnknownDevice,
                    None,
                    10
                )),
            ),
            ("inbound for backup", len!(store.inbound_group_sessions_for_backup("other", 10))),
            ("inbound total", counts.total),
            ("inbound backed up", counts.backed_up),
            ("outbound", some!(store.get_outbound_group_session(room()))),
            ("withheld", some!(store.get_withheld_info(room(), "withheld"))),
            ("withheld of room", len!(store.get_withheld_sessions_by_room_id(room()))),
            ("tracked", len!(store.load_tracked_users())),
            ("device", some!(store.get_device(own_user(), device_id))),
            ("devices", len!(store.get_user_devices(own_user()))),
            ("other device", some!(store.get_device(other_user(), device_id!("OTHER")))),
            ("other devices", len!(store.get_user_devices(other_user()))),
            ("own device", usize::from(store.get_own_device().await.is_ok())),
            ("own identity", some!(store.get_user_identity(get_own_identity().user_id()))),
            ("identity", some!(store.get_user_identity(get_other_identity().user_id()))),
            ("hash", yes!(store.is_message_known(&self.hash))),
            ("request", some!(store.get_outgoing_secret_requests(&self.request_id))),
            ("request by info", some!(store.get_secret_request_by_info(&info()))),
            ("unsent", len!(store.get_unsent_secret_requests())),
            ("secrets", len!(store.get_secrets_from_inbox(&SecretName::RecoveryKey))),
            ("settings", some!(store.get_room_settings(room()))),
            ("bundle", some!(store.get_received_room_key_bundle_data(room(), other_user()))),
            ("pending", some!(store.get_pending_key_bundle_details_for_room(room()))),
            ("all pending", len!(store.get_all_rooms_pending_key_bundles())),
            ("downloaded", yes!(store.has_downloaded_all_room_keys(room()))),
            ("custom", some!(store.get_custom_value(CUSTOM))),
            ("token", some!(store.next_batch_token())),
            (
                "size",
                usize::from(store.get_size().await.expect("reads").is_some_and(|size| size > 0)),
            ),
        ])
    }
}
