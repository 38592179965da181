//! `crypto_outbound_group_sessions`: the room keys that a bot sends with.

use std::collections::{BTreeMap, HashMap};

use matrix_sdk_crypto::olm::{OutboundGroupSession, PickledOutboundGroupSession};
use ruma::{OwnedRoomId, RoomId};
use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result, cache::Weighed};
use crate::{model::BotId, store::StoreError};

pub(super) const TABLE: &str = "crypto_outbound_group_sessions";

/// Sealed sessions by bot and room.
pub(super) type Rows = BTreeMap<(BotId, String), Vec<u8>>;

/// The session that the bot sends with in this room.
pub(super) async fn load(
    store: &PgCryptoStore,
    room_id: &RoomId,
) -> Result<Option<OutboundGroupSession>> {
    let prefetched = store.prefetched().outbound.remove(room_id.as_str());
    let sealed = if let Some(sealed) = prefetched {
        sealed
    } else {
        store.settle_if(|gathered| gathered.outbound.contains_key(room_id)).await?;
        sqlx::query_scalar!(
            "-- crypto_store.outbound.load
            SELECT sealed_session FROM crypto_outbound_group_sessions
            WHERE bot_id = $1 AND room_id = $2",
            store.bot.0,
            room_id.as_str(),
        )
        .fetch_optional(store.pool())
        .await?
    };
    let Some(sealed) = sealed else { return Ok(None) };
    let pickle: PickledOutboundGroupSession = store.open(TABLE, &[room_id.as_str()], &sealed)?;
    let weighed = Weighed::from(&pickle);
    let account = store.static_account().await?;
    let session =
        OutboundGroupSession::from_pickle(account.device_id, account.identity_keys, pickle)
            .map_err(|_| PgCryptoStoreError::Pickle(TABLE))?;
    store.cache().keep_outbound(&session, weighed);
    Ok(Some(session))
}

/// Remembers a session that the machine sends with.
pub(super) async fn note(store: &PgCryptoStore, session: &OutboundGroupSession) {
    if !store.cache().knows_outbound(session) {
        let weighed = Weighed::from(&session.pickle().await);
        store.cache().keep_outbound(session, weighed);
    }
}

/// Pickles and seals.
pub(super) async fn prepare(
    store: &PgCryptoStore,
    sessions: HashMap<OwnedRoomId, OutboundGroupSession>,
) -> Result<Rows> {
    let mut rows = Rows::new();
    for (room_id, session) in sessions {
        let pickle = session.pickle().await;
        store.cache().weigh_outbound(&pickle);
        let sealed = store.seal(TABLE, &[room_id.as_str()], &pickle)?;
        rows.insert((store.bot, room_id.into()), sealed);
    }
    Ok(rows)
}

/// Writes what [`prepare`] made.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, room_ids): (Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, room_id)| (bot.0, room_id)).unzip();
    sqlx::query!(
        "-- crypto_store.outbound.save
        INSERT INTO crypto_outbound_group_sessions (bot_id, room_id, sealed_session)
        SELECT r.bot_id, r.room_id, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[]) AS r (bot_id, room_id, sealed)
        ON CONFLICT (bot_id, room_id) DO UPDATE SET sealed_session = EXCLUDED.sealed_session",
        &bots,
        &room_ids,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}
