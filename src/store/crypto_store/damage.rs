//! Rows that do not open any more: dropped, so that one of them does not stop a bot for good.
//!
//! What is lost by it comes again by itself: the private identity from `bot_identities`, devices and
//! identities are asked for, other sides notice an Olm session that is gone, and room keys are shared
//! anew with the next rotation. An account is not dropped here: without it the device is lost, which is
//! a repair's affair.

use matrix_sdk_crypto::{
    DeviceData, GossipRequest, UserIdentityData,
    olm::{PickledOutboundGroupSession, PickledSession},
    store::types::{
        RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings, StoredRoomKeyBundleData,
    },
};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{
    PgCryptoStore, Result, devices, group_sessions, outbound, requests, rooms, sessions, values,
};

/// A sealed value, and where it lies: up to two columns of its key.
pub(super) struct Row {
    pub(super) kept_in: String,
    pub(super) first: String,
    pub(super) second: String,
    pub(super) sealed: Vec<u8>,
}

impl PgCryptoStore {
    /// Drops all that is stored of the bot, but for its account, and does not open, or opens and is not
    /// what it should be. Tells how many rows they were.
    ///
    /// # Errors
    ///
    /// The database's own, or a lost lease.
    pub async fn drop_damaged(&self) -> Result<usize> {
        let mut damaged = self.sealed_rows().await?;
        damaged.retain(|row| self.try_to_open(row).is_err());
        if damaged.is_empty() {
            return Ok(0);
        }
        let (kept_in, (first, second)): (Vec<_>, (Vec<_>, Vec<_>)) =
            damaged.into_iter().map(|row| (row.kept_in, (row.first, row.second))).unzip();
        let mut write = self.turn().await.begin().await?;
        sqlx::query!(
            "-- crypto_store.damage.drop
            WITH gone AS MATERIALIZED (
                SELECT * FROM UNNEST($2::TEXT[], $3::TEXT[], $4::TEXT[]) AS g (kept_in, first, second)
            ), kept_values AS (
                DELETE FROM crypto_values WHERE bot_id = $1
                    AND name IN (SELECT first FROM gone WHERE kept_in = 'crypto_values')
            ), custom_values AS (
                DELETE FROM crypto_custom_values WHERE bot_id = $1
                    AND name IN (SELECT first FROM gone WHERE kept_in = 'crypto_custom_values')
            ), olm_sessions AS (
                DELETE FROM crypto_olm_sessions WHERE bot_id = $1
                    AND (sender_key, session_id) IN (
                        SELECT first, second FROM gone WHERE kept_in = 'crypto_olm_sessions')
            ), inbound AS (
                DELETE FROM crypto_inbound_group_sessions WHERE bot_id = $1
                    AND (room_id, session_id) IN (
                        SELECT first, second FROM gone
                        WHERE kept_in = 'crypto_inbound_group_sessions')
            ), outbound AS (
                DELETE FROM crypto_outbound_group_sessions WHERE bot_id = $1
                    AND room_id IN (
                        SELECT first FROM gone WHERE kept_in = 'crypto_outbound_group_sessions')
            ), devices AS (
                DELETE FROM crypto_devices WHERE bot_id = $1
                    AND (user_id, device_id) IN (
                        SELECT first, second FROM gone WHERE kept_in = 'crypto_devices')
            ), identities AS (
                DELETE FROM crypto_identities WHERE bot_id = $1
                    AND user_id IN (SELECT first FROM gone WHERE kept_in = 'crypto_identities')
            ), requests AS (
                DELETE FROM crypto_requests WHERE bot_id = $1
                    AND request_id IN (SELECT first FROM gone WHERE kept_in = 'crypto_requests')
            ), secrets AS (
                DELETE FROM crypto_secrets WHERE bot_id = $1
                    AND (secret_name, ENCODE(digest, 'hex')) IN (
                        SELECT first, second FROM gone WHERE kept_in = 'crypto_secrets')
            ), withheld AS (
                DELETE FROM crypto_withheld_sessions WHERE bot_id = $1
                    AND (room_id, session_id) IN (
                        SELECT first, second FROM gone WHERE kept_in = 'crypto_withheld_sessions')
            ), settings AS (
                DELETE FROM crypto_room_settings WHERE bot_id = $1
                    AND room_id IN (SELECT first FROM gone WHERE kept_in = 'crypto_room_settings')
            ), bundles AS (
                DELETE FROM crypto_room_key_bundles WHERE bot_id = $1
                    AND (room_id, sender_user_id) IN (
                        SELECT first, second FROM gone WHERE kept_in = 'crypto_room_key_bundles')
            ), pending AS (
                DELETE FROM crypto_pending_key_bundles WHERE bot_id = $1
                    AND room_id IN (
                        SELECT first FROM gone WHERE kept_in = 'crypto_pending_key_bundles')
            )
            UPDATE crypto_tracked_users SET dirty = TRUE WHERE bot_id = $1",
            write.bot.0,
            &kept_in,
            &first,
            &second,
        )
        .execute(&mut *write.tx)
        .await?;
        write.commit().await?;
        Ok(kept_in.len())
    }

    /// All that is sealed of the bot but its account.
    pub(super) async fn sealed_rows(&self) -> Result<Vec<Row>> {
        self.settle(|rows| !rows.is_empty()).await?;
        Ok(sqlx::query_as!(
            Row,
            r#"-- crypto_store.damage.sealed_rows
            SELECT kept_in AS "kept_in!", first AS "first!", second AS "second!", sealed AS "sealed!"
            FROM (
                SELECT 'crypto_values' AS kept_in, name AS first, '' AS second,
                    sealed_value AS sealed
                FROM crypto_values WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_custom_values', name, '', sealed_value
                FROM crypto_custom_values WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_olm_sessions', sender_key, session_id, sealed_session
                FROM crypto_olm_sessions WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_inbound_group_sessions', room_id, session_id, sealed_session
                FROM crypto_inbound_group_sessions WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_outbound_group_sessions', room_id, '', sealed_session
                FROM crypto_outbound_group_sessions WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_devices', user_id, device_id, sealed_device
                FROM crypto_devices WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_identities', user_id, '', sealed_identity
                FROM crypto_identities WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_requests', request_id, '', sealed_request
                FROM crypto_requests WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_secrets', secret_name, ENCODE(digest, 'hex'), sealed_secret
                FROM crypto_secrets WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_withheld_sessions', room_id, session_id, sealed_entry
                FROM crypto_withheld_sessions WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_room_settings', room_id, '', sealed_settings
                FROM crypto_room_settings WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_room_key_bundles', room_id, sender_user_id, sealed_bundle
                FROM crypto_room_key_bundles WHERE bot_id = $1
                UNION ALL
                SELECT 'crypto_pending_key_bundles', room_id, '', sealed_details
                FROM crypto_pending_key_bundles WHERE bot_id = $1
            ) AS rows"#,
            self.bot.0,
        )
        .fetch_all(self.pool())
        .await?)
    }

    /// Opens and reads a row as whoever asks for it does.
    fn try_to_open(&self, row: &Row) -> Result<()> {
        let (one, two) = ([&*row.first], [&*row.first, &*row.second]);
        let sealed = &row.sealed;
        match &*row.kept_in {
            values::TABLE => values::try_to_open(self, &row.first, sealed),
            values::CUSTOM => self.open_bytes(values::CUSTOM, &one, sealed).map(drop),
            sessions::TABLE => self.parses::<PickledSession>(sessions::TABLE, &two, sealed),
            group_sessions::INBOUND => {
                group_sessions::try_to_open(self, &row.first, &row.second, sealed)
            }
            outbound::TABLE => {
                self.parses::<PickledOutboundGroupSession>(outbound::TABLE, &one, sealed)
            }
            devices::DEVICES => self.parses::<DeviceData>(devices::DEVICES, &two, sealed),
            devices::IDENTITIES => {
                self.parses::<UserIdentityData>(devices::IDENTITIES, &one, sealed)
            }
            requests::REQUESTS => self.parses::<GossipRequest>(requests::REQUESTS, &one, sealed),
            requests::SECRETS => self
                .open::<String>(requests::SECRETS, &one, sealed)
                .map(|secret| drop(Zeroizing::new(secret))),
            rooms::WITHHELD => self.parses::<RoomKeyWithheldEntry>(rooms::WITHHELD, &two, sealed),
            rooms::SETTINGS => self.parses::<RoomSettings>(rooms::SETTINGS, &one, sealed),
            rooms::BUNDLES => self.parses::<StoredRoomKeyBundleData>(rooms::BUNDLES, &two, sealed),
            _ => self.parses::<RoomPendingKeyBundleDetails>(rooms::PENDING, &one, sealed),
        }
    }

    fn parses<T: DeserializeOwned>(
        &self,
        table: &'static str,
        key: &[&str],
        sealed: &[u8],
    ) -> Result<()> {
        self.open::<T>(table, key, sealed).map(drop)
    }
}
