//! Rows that do not open any more: dropped, so that one of them does not stop a bot for good.
//!
//! What is lost by it comes again by itself: devices and identities are asked for, other sides notice
//! an Olm session that is gone, and room keys are shared anew with the next rotation. An account is not
//! dropped here: without it the device is lost, which is a repair's affair.

use super::{PgCryptoStore, Result, Write};

impl PgCryptoStore {
    /// Drops the bot's sessions, devices and identities that do not open, and tells how many they were.
    ///
    /// # Errors
    ///
    /// The database's own, or a lost lease.
    pub async fn drop_damaged(&self) -> Result<usize> {
        let room_keys = self.drop_damaged_room_keys().await?;
        let mut write = self.turn().await.begin().await?;
        let mut dropped = self.drop_damaged_sessions(&mut write).await?;
        dropped += self.drop_damaged_people(&mut write).await?;
        if dropped > 0 {
            sqlx::query!(
                "-- crypto_store.damage.ask_again
                UPDATE crypto_tracked_users SET dirty = TRUE WHERE bot_id = $1",
                write.bot.0,
            )
            .execute(&mut *write.tx)
            .await?;
        }
        write.commit().await?;
        Ok(room_keys + dropped)
    }

    async fn drop_damaged_sessions(&self, write: &mut Write<'_>) -> Result<usize> {
        let mut dropped = 0;
        let rows = sqlx::query!(
            "-- crypto_store.damage.olm_sessions
            SELECT sender_key, session_id, sealed_session FROM crypto_olm_sessions WHERE bot_id = $1",
            write.bot.0,
        )
        .fetch_all(&mut *write.tx)
        .await?;
        for row in rows {
            if self
                .open_bytes(
                    "crypto_olm_sessions",
                    &[&row.sender_key, &row.session_id],
                    &row.sealed_session,
                )
                .is_err()
            {
                sqlx::query!(
                    "-- crypto_store.damage.drop_olm_sessions
                    DELETE FROM crypto_olm_sessions WHERE bot_id = $1 AND sender_key = $2 AND session_id = $3",
                    write.bot.0,
                    row.sender_key,
                    row.session_id,
                )
                .execute(&mut *write.tx)
                .await?;
                dropped += 1;
            }
        }
        let rows = sqlx::query!(
            "-- crypto_store.damage.outbound
            SELECT room_id, sealed_session FROM crypto_outbound_group_sessions WHERE bot_id = $1",
            write.bot.0,
        )
        .fetch_all(&mut *write.tx)
        .await?;
        for row in rows {
            if self
                .open_bytes("crypto_outbound_group_sessions", &[&row.room_id], &row.sealed_session)
                .is_err()
            {
                sqlx::query!(
                    "-- crypto_store.damage.drop_outbound
                    DELETE FROM crypto_outbound_group_sessions WHERE bot_id = $1 AND room_id = $2",
                    write.bot.0,
                    row.room_id,
                )
                .execute(&mut *write.tx)
                .await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    async fn drop_damaged_people(&self, write: &mut Write<'_>) -> Result<usize> {
        let mut dropped = 0;
        let rows = sqlx::query!(
            "-- crypto_store.damage.devices
            SELECT user_id, device_id, sealed_device FROM crypto_devices WHERE bot_id = $1",
            write.bot.0,
        )
        .fetch_all(&mut *write.tx)
        .await?;
        for row in rows {
            if self
                .open_bytes("crypto_devices", &[&row.user_id, &row.device_id], &row.sealed_device)
                .is_err()
            {
                sqlx::query!(
                    "-- crypto_store.damage.drop_devices
                    DELETE FROM crypto_devices WHERE bot_id = $1 AND user_id = $2 AND device_id = $3",
                    write.bot.0,
                    row.user_id,
                    row.device_id,
                )
                .execute(&mut *write.tx)
                .await?;
                dropped += 1;
            }
        }
        let rows = sqlx::query!(
            "-- crypto_store.damage.identities
            SELECT user_id, sealed_identity FROM crypto_identities WHERE bot_id = $1",
            write.bot.0,
        )
        .fetch_all(&mut *write.tx)
        .await?;
        for row in rows {
            if self.open_bytes("crypto_identities", &[&row.user_id], &row.sealed_identity).is_err()
            {
                sqlx::query!(
                    "-- crypto_store.damage.drop_identities
                    DELETE FROM crypto_identities WHERE bot_id = $1 AND user_id = $2",
                    write.bot.0,
                    row.user_id,
                )
                .execute(&mut *write.tx)
                .await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}
