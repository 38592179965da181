//! Which room keys lie in the server-side backup. We remember to which version a key was backed up, so
//! that a new backup gets all of them.

use matrix_sdk_crypto::{olm::InboundGroupSession, store::types::RoomKeyCounts};
use ruma::RoomId;

use super::{
    PgCryptoStore, Result,
    group_sessions::{Row, open_all},
};

/// How many keys there are, and how many of them in the backup of this version.
pub(super) async fn counts(store: &PgCryptoStore, version: Option<&str>) -> Result<RoomKeyCounts> {
    store.settle(|rows| !rows.inbound.is_empty()).await?;
    let row = sqlx::query!(
        r#"-- crypto_store.backup.counts
        SELECT COUNT(*) AS "total!", COUNT(*) FILTER (WHERE backed_up_to = $2) AS "backed_up!"
        FROM crypto_inbound_group_sessions
        WHERE bot_id = $1"#,
        store.bot.0,
        version,
    )
    .fetch_one(store.pool())
    .await?;
    Ok(RoomKeyCounts {
        total: usize::try_from(row.total).unwrap_or_default(),
        backed_up: usize::try_from(row.backed_up).unwrap_or_default(),
    })
}

/// At most `limit` keys that are not in the backup of this version.
pub(super) async fn load_missing(
    store: &PgCryptoStore,
    version: &str,
    limit: usize,
) -> Result<Vec<InboundGroupSession>> {
    store.settle(|rows| !rows.inbound.is_empty()).await?;
    // Three ranges of an index instead of IS DISTINCT FROM, which no index serves: usually there is
    // nothing to find among many keys.
    let rows = sqlx::query_as!(
        Row,
        r#"-- crypto_store.backup.load_missing
        SELECT room_id AS "room_id!", session_id AS "session_id!", backed_up AS "backed_up!",
            sealed_session AS "sealed_session!"
        FROM (
            (SELECT * FROM crypto_inbound_group_sessions
            WHERE bot_id = $1 AND backed_up_to IS NULL LIMIT $3)
            UNION ALL
            (SELECT * FROM crypto_inbound_group_sessions
            WHERE bot_id = $1 AND backed_up_to < $2 LIMIT $3)
            UNION ALL
            (SELECT * FROM crypto_inbound_group_sessions
            WHERE bot_id = $1 AND backed_up_to > $2 LIMIT $3)
        ) AS missing
        LIMIT $3"#,
        store.bot.0,
        version,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(store.pool())
    .await?;
    open_all(store, &rows)
}

/// These keys are now in the backup of this version.
pub(super) async fn mark(
    store: &PgCryptoStore,
    version: &str,
    sessions: &[(&RoomId, &str)],
) -> Result<()> {
    if sessions.is_empty() {
        return Ok(());
    }
    let (room_ids, session_ids): (Vec<_>, Vec<_>) = sessions
        .iter()
        .map(|(room_id, session_id)| (room_id.as_str().to_owned(), (*session_id).to_owned()))
        .unzip();
    store.cache().forget_inbound();
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.backup.mark
        UPDATE crypto_inbound_group_sessions AS s
        SET backed_up = TRUE, backed_up_to = $2
        FROM UNNEST($3::TEXT[], $4::TEXT[]) AS r (room_id, session_id)
        WHERE s.bot_id = $1 AND s.room_id = r.room_id AND s.session_id = r.session_id",
        write.bot.0,
        version,
        &room_ids,
        &session_ids,
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}

/// No key is in any backup: the backup was disabled.
pub(super) async fn reset(store: &PgCryptoStore) -> Result<()> {
    store.cache().forget_inbound();
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.backup.reset
        UPDATE crypto_inbound_group_sessions SET backed_up = FALSE, backed_up_to = NULL
        WHERE bot_id = $1 AND backed_up",
        write.bot.0,
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}
