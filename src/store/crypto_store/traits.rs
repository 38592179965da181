//! The trait, each method where it belongs.

use std::collections::HashMap;

use async_trait::async_trait;
use matrix_sdk_common::cross_process_lock::CrossProcessLockGeneration;
use matrix_sdk_crypto::{
    DeviceData, GossipRequest, SecretInfo, TrackedUser, UserIdentityData,
    olm::{
        Account, InboundGroupSession, OlmMessageHash, OutboundGroupSession,
        PrivateCrossSigningIdentity, SenderDataType, Session,
    },
    store::{
        CryptoStore,
        types::{
            BackupKeys, Changes, DehydratedDeviceKey, PendingChanges, RoomKeyCounts,
            RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
            StoredRoomKeyBundleData,
        },
    },
};
use ruma::{
    DeviceId, OwnedDeviceId, RoomId, TransactionId, UserId, events::secret::request::SecretName,
};
use vodozemac::Curve25519PublicKey;
use zeroize::Zeroizing;

use super::{
    PgCryptoStore, PgCryptoStoreError, Result, account, backup, changes, devices, group_sessions,
    outbound, requests, rooms, sessions, users, values,
};

#[async_trait]
impl CryptoStore for PgCryptoStore {
    type Error = PgCryptoStoreError;

    async fn load_account(&self) -> Result<Option<Account>> {
        self.noted(account::load(self).await)
    }

    async fn load_identity(&self) -> Result<Option<PrivateCrossSigningIdentity>> {
        self.noted(values::load_identity(self).await)
    }

    async fn save_changes(&self, changes: Changes) -> Result<()> {
        self.noted(changes::save(self, changes).await)
    }

    async fn save_pending_changes(&self, changes: PendingChanges) -> Result<()> {
        self.noted(changes::save_account(self, changes.account).await)
    }

    async fn save_inbound_group_sessions(
        &self,
        sessions: Vec<InboundGroupSession>,
        backed_up_to_version: Option<&str>,
    ) -> Result<()> {
        self.noted(group_sessions::import(self, sessions, backed_up_to_version).await)
    }

    async fn get_sessions(&self, sender_key: &str) -> Result<Option<Vec<Session>>> {
        self.noted(sessions::load(self, sender_key).await)
    }

    async fn get_inbound_group_session(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<InboundGroupSession>> {
        self.noted(group_sessions::load(self, room_id, session_id).await)
    }

    async fn get_withheld_info(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<RoomKeyWithheldEntry>> {
        self.noted(rooms::load_withheld(self, room_id, session_id).await)
    }

    async fn get_withheld_sessions_by_room_id(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<RoomKeyWithheldEntry>> {
        self.noted(rooms::load_withheld_of_room(self, room_id).await)
    }

    async fn get_inbound_group_sessions(&self) -> Result<Vec<InboundGroupSession>> {
        self.noted(group_sessions::load_all(self).await)
    }

    async fn inbound_group_session_counts(
        &self,
        backup_version: Option<&str>,
    ) -> Result<RoomKeyCounts> {
        self.noted(backup::counts(self, backup_version).await)
    }

    async fn get_inbound_group_sessions_by_room_id(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<InboundGroupSession>> {
        self.noted(group_sessions::load_by_room(self, room_id).await)
    }

    async fn get_inbound_group_sessions_for_device_batch(
        &self,
        curve_key: Curve25519PublicKey,
        sender_data_type: SenderDataType,
        after_session_id: Option<String>,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        self.noted(
            group_sessions::load_by_device(
                self,
                curve_key,
                sender_data_type,
                after_session_id,
                limit,
            )
            .await,
        )
    }

    async fn inbound_group_sessions_for_backup(
        &self,
        backup_version: &str,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        self.noted(backup::load_missing(self, backup_version, limit).await)
    }

    async fn mark_inbound_group_sessions_as_backed_up(
        &self,
        backup_version: &str,
        room_and_session_ids: &[(&RoomId, &str)],
    ) -> Result<()> {
        self.noted(backup::mark(self, backup_version, room_and_session_ids).await)
    }

    async fn reset_backup_state(&self) -> Result<()> {
        self.noted(backup::reset(self).await)
    }

    async fn load_backup_keys(&self) -> Result<BackupKeys> {
        self.noted(values::load_backup_keys(self).await)
    }

    async fn load_dehydrated_device_pickle_key(&self) -> Result<Option<DehydratedDeviceKey>> {
        self.noted(values::load(self, values::DEHYDRATED_DEVICE_KEY).await)
    }

    async fn delete_dehydrated_device_pickle_key(&self) -> Result<()> {
        self.noted(values::delete(self, values::DEHYDRATED_DEVICE_KEY).await)
    }

    async fn get_outbound_group_session(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<OutboundGroupSession>> {
        self.noted(outbound::load(self, room_id).await)
    }

    async fn load_tracked_users(&self) -> Result<Vec<TrackedUser>> {
        self.noted(users::load(self).await)
    }

    async fn save_tracked_users(&self, users: &[(&UserId, bool)]) -> Result<()> {
        self.noted(changes::save_tracked(self, users).await)
    }

    async fn get_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<DeviceData>> {
        self.noted(devices::load(self, user_id, device_id).await)
    }

    async fn get_user_devices(
        &self,
        user_id: &UserId,
    ) -> Result<HashMap<OwnedDeviceId, DeviceData>> {
        self.noted(devices::load_of_user(self, user_id).await)
    }

    async fn get_own_device(&self) -> Result<DeviceData> {
        self.noted(devices::load_own(self).await)
    }

    async fn get_user_identity(&self, user_id: &UserId) -> Result<Option<UserIdentityData>> {
        self.noted(devices::load_identity(self, user_id).await)
    }

    async fn is_message_known(&self, message_hash: &OlmMessageHash) -> Result<bool> {
        self.noted(sessions::is_message_known(self, message_hash).await)
    }

    async fn get_outgoing_secret_requests(
        &self,
        request_id: &TransactionId,
    ) -> Result<Option<GossipRequest>> {
        self.noted(requests::load(self, request_id).await)
    }

    async fn get_secret_request_by_info(
        &self,
        secret_info: &SecretInfo,
    ) -> Result<Option<GossipRequest>> {
        self.noted(requests::load_by_info(self, secret_info).await)
    }

    async fn get_unsent_secret_requests(&self) -> Result<Vec<GossipRequest>> {
        self.noted(requests::load_unsent(self).await)
    }

    async fn delete_outgoing_secret_requests(&self, request_id: &TransactionId) -> Result<()> {
        self.noted(requests::delete(self, request_id).await)
    }

    async fn get_secrets_from_inbox(
        &self,
        secret_name: &SecretName,
    ) -> Result<Vec<Zeroizing<String>>> {
        self.noted(requests::load_secrets(self, secret_name).await)
    }

    async fn delete_secrets_from_inbox(&self, secret_name: &SecretName) -> Result<()> {
        self.noted(requests::delete_secrets(self, secret_name).await)
    }

    async fn get_room_settings(&self, room_id: &RoomId) -> Result<Option<RoomSettings>> {
        self.noted(rooms::load_settings(self, room_id).await)
    }

    async fn get_received_room_key_bundle_data(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<Option<StoredRoomKeyBundleData>> {
        self.noted(rooms::load_bundle(self, room_id, user_id).await)
    }

    async fn get_pending_key_bundle_details_for_room(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<RoomPendingKeyBundleDetails>> {
        self.noted(rooms::load_pending(self, room_id).await)
    }

    async fn get_all_rooms_pending_key_bundles(&self) -> Result<Vec<RoomPendingKeyBundleDetails>> {
        self.noted(rooms::load_all_pending(self).await)
    }

    async fn has_downloaded_all_room_keys(&self, room_id: &RoomId) -> Result<bool> {
        self.noted(rooms::is_downloaded(self, room_id).await)
    }

    async fn get_custom_value(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.noted(values::load_custom(self, key).await)
    }

    async fn set_custom_value(&self, key: &str, value: Vec<u8>) -> Result<()> {
        self.noted(values::save_custom(self, key, value).await)
    }

    async fn remove_custom_value(&self, key: &str) -> Result<()> {
        self.noted(values::delete_custom(self, key).await)
    }

    async fn try_take_leased_lock(
        &self,
        lease_duration_ms: u32,
        key: &str,
        holder: &str,
    ) -> Result<Option<CrossProcessLockGeneration>> {
        self.noted(values::try_lock(self, lease_duration_ms, key, holder).await)
    }

    async fn next_batch_token(&self) -> Result<Option<String>> {
        self.noted(values::load(self, values::NEXT_BATCH_TOKEN).await)
    }

    /// Nothing to do: the pool is the fleet's, and this store holds nothing of it between calls.
    async fn close(&self) -> Result<()> {
        Ok(())
    }

    async fn reopen(&self) -> Result<()> {
        Ok(())
    }

    async fn get_size(&self) -> Result<Option<usize>> {
        self.noted(values::size(self).await)
    }
}
