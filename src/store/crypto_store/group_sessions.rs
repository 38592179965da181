//! `crypto_inbound_group_sessions`: the room keys that a bot has.

use std::collections::BTreeMap;

use matrix_sdk_crypto::olm::{InboundGroupSession, PickledInboundGroupSession, SenderDataType};
use ruma::RoomId;
use tracing::warn;
use vodozemac::Curve25519PublicKey;

use sqlx::PgConnection;

use super::{Gathered, PgCryptoStore, PgCryptoStoreError, Result, rows::CryptoRows};
use crate::{model::BotId, store::StoreError};

pub(super) const INBOUND: &str = "crypto_inbound_group_sessions";

/// A room key as it is stored.
pub(super) struct Row {
    pub(super) room_id: String,
    pub(super) session_id: String,
    pub(super) backed_up: bool,
    pub(super) sealed_session: Vec<u8>,
}

impl Row {
    /// The column says whether it is backed up: marking keys as such does not pickle them anew.
    pub(super) fn open(&self, store: &PgCryptoStore) -> Result<InboundGroupSession> {
        let mut pickle: PickledInboundGroupSession =
            store.open(INBOUND, &[&self.room_id, &self.session_id], &self.sealed_session)?;
        pickle.backed_up = self.backed_up;
        read(pickle)
    }
}

fn read(pickle: PickledInboundGroupSession) -> Result<InboundGroupSession> {
    InboundGroupSession::from_pickle(pickle).map_err(|_| PgCryptoStoreError::Pickle(INBOUND))
}

/// Opens all of `rows`.
pub(super) fn open_all(store: &PgCryptoStore, rows: &[Row]) -> Result<Vec<InboundGroupSession>> {
    rows.iter().map(|row| row.open(store)).collect()
}

/// Whether a room key opens.
pub(super) fn try_to_open(
    store: &PgCryptoStore,
    room_id: &str,
    session_id: &str,
    sealed: &[u8],
) -> Result<()> {
    let pickle = store.open(INBOUND, &[room_id, session_id], sealed)?;
    read(pickle).map(drop)
}

/// One room key.
pub(super) async fn load(
    store: &PgCryptoStore,
    room_id: &RoomId,
    session_id: &str,
) -> Result<Option<InboundGroupSession>> {
    if let Some(session) = store.cache().inbound(room_id, session_id) {
        return Ok(Some(session));
    }
    let key = (room_id.to_string(), session_id.to_owned());
    let prefetched = store.prefetched().inbound.remove(&key);
    let row = match prefetched {
        Some(row) => row,
        None => from_database(store, room_id, session_id).await?,
    };
    let session = row.map(|row| row.open(store)).transpose()?;
    store.cache().keep_inbound(session.iter());
    Ok(session)
}

async fn from_database(
    store: &PgCryptoStore,
    room_id: &RoomId,
    session_id: &str,
) -> Result<Option<Row>> {
    store
        .settle(|rows| {
            let key = (store.bot, room_id.to_string(), session_id.to_owned());
            rows.inbound.contains_key(&key)
        })
        .await?;
    Ok(sqlx::query_as!(
        Row,
        "-- crypto_store.group_sessions.load
        SELECT room_id, session_id, backed_up, sealed_session FROM crypto_inbound_group_sessions
        WHERE bot_id = $1 AND room_id = $2 AND session_id = $3",
        store.bot.0,
        room_id.as_str(),
        session_id,
    )
    .fetch_optional(store.pool())
    .await?)
}

/// Every room key of the bot. Nothing that runs often asks for this.
pub(super) async fn load_all(store: &PgCryptoStore) -> Result<Vec<InboundGroupSession>> {
    store.settle(|rows| !rows.inbound.is_empty()).await?;
    let rows = sqlx::query_as!(
        Row,
        "-- crypto_store.group_sessions.load_all
        SELECT room_id, session_id, backed_up, sealed_session FROM crypto_inbound_group_sessions
        WHERE bot_id = $1
        ORDER BY room_id, session_id",
        store.bot.0,
    )
    .fetch_all(store.pool())
    .await?;
    open_all(store, &rows)
}

/// Every key of one room.
pub(super) async fn load_by_room(
    store: &PgCryptoStore,
    room_id: &RoomId,
) -> Result<Vec<InboundGroupSession>> {
    store.settle(|rows| !rows.inbound.is_empty()).await?;
    let rows = sqlx::query_as!(
        Row,
        "-- crypto_store.group_sessions.load_by_room
        SELECT room_id, session_id, backed_up, sealed_session FROM crypto_inbound_group_sessions
        WHERE bot_id = $1 AND room_id = $2
        ORDER BY session_id",
        store.bot.0,
        room_id.as_str(),
    )
    .fetch_all(store.pool())
    .await?;
    open_all(store, &rows)
}

/// The next keys that one device made and whose sender is known as well as `sender_data_type` says.
///
/// The caller goes on after the last session id. Should a device have used one session in several
/// rooms, all of them come with the batch, even beyond `limit`: none may be passed over. The caller
/// asks often, while it saves each batch as better known, and mostly for one key that has just come: so
/// what is gathered is looked through, and not written first.
pub(super) async fn load_by_device(
    store: &PgCryptoStore,
    sender_key: Curve25519PublicKey,
    sender_data_type: SenderDataType,
    after: Option<String>,
    limit: usize,
) -> Result<Vec<InboundGroupSession>> {
    let device = (sender_key.to_base64(), sender_data_type as i16);
    let mut after = after.unwrap_or_default();
    let mut turn = store.turn().await;
    loop {
        let Gathered { rows: gathered, read_to_end, .. } = &mut *turn.gathered;
        let at_end = read_to_end.get(&device).is_some_and(|end| *end <= after);
        let mut rows =
            if at_end { Vec::new() } else { page_of_device(store, &device, &after, limit).await? };
        let last = rows.last().map(|row| row.session_id.clone());
        // After a full page more may follow.
        let full = rows.len() >= limit;
        if !at_end && !full {
            read_to_end.insert(device.clone(), last.clone().unwrap_or_else(|| after.clone()));
        }
        let last = last.filter(|_| full);

        rows.retain(|row| {
            let key = (store.bot, row.room_id.clone(), row.session_id.clone());
            !gathered.inbound.contains_key(&key)
        });
        let on_page = |id: &String| *id > after && last.as_ref().is_none_or(|last| id <= last);
        let newer = gathered.inbound.iter();
        let newer = newer.filter(|((_, _, id), row)| row.device == device && on_page(id));
        rows.extend(newer.map(|((_, room_id, session_id), row)| Row {
            room_id: room_id.clone(),
            session_id: session_id.clone(),
            backed_up: row.backed_up,
            sealed_session: row.sealed.clone(),
        }));
        match last {
            // All on this page are known better by now.
            Some(last) if rows.is_empty() => after = last,
            _ => {
                rows.sort_unstable_by(|a, b| a.session_id.cmp(&b.session_id));
                return open_all(store, &rows);
            }
        }
    }
}

async fn page_of_device(
    store: &PgCryptoStore,
    (sender_key, sender_data_type): &(String, i16),
    after: &str,
    limit: usize,
) -> Result<Vec<Row>> {
    Ok(sqlx::query_as!(
        Row,
        "-- crypto_store.group_sessions.load_by_device
        SELECT room_id, session_id, backed_up, sealed_session
        FROM crypto_inbound_group_sessions
        WHERE bot_id = $1 AND sender_key = $2 AND sender_data_type = $3 AND session_id > $4
        ORDER BY session_id
        FETCH FIRST $5 ROWS WITH TIES",
        store.bot.0,
        sender_key,
        sender_data_type,
        after,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(store.pool())
    .await?)
}

/// What a room key is stored with.
#[derive(Clone, Debug)]
pub(super) struct InboundRow {
    /// The device's Curve25519 key, and how well it is known.
    device: (String, i16),
    backed_up: bool,
    sealed: Vec<u8>,
}

/// Sealed room keys by bot, room and session id.
pub(super) type InboundRows = BTreeMap<(BotId, String, String), InboundRow>;

/// Of several copies of one room key the one that opens most. The machine compares each key that
/// comes with what is stored, but not with the others that come at the same time; and a peer whose
/// device starts another Olm session is given the key a second time, from where the ratchet is then.
fn best(sessions: &[InboundGroupSession]) -> impl Iterator<Item = &InboundGroupSession> {
    let mut best: BTreeMap<(String, String), &InboundGroupSession> = BTreeMap::new();
    for session in sessions {
        let key = (session.room_id().as_str().to_owned(), session.session_id().to_owned());
        let opens_more =
            |known: &&InboundGroupSession| known.first_known_index() < session.first_known_index();
        if !best.get(&key).is_some_and(opens_more) {
            best.insert(key, session);
        }
    }
    best.into_values()
}

/// Pickles and seals.
pub(super) async fn prepare_inbound(
    store: &PgCryptoStore,
    sessions: &[InboundGroupSession],
) -> Result<InboundRows> {
    let mut rows = InboundRows::new();
    for session in best(sessions) {
        store.cache().keep_inbound([session].into_iter());
        let room_id = session.room_id().as_str().to_owned();
        let session_id = session.session_id().to_owned();
        let pickle = session.pickle().await;
        let row = InboundRow {
            device: (session.sender_key().to_base64(), session.sender_data_type() as i16),
            backed_up: pickle.backed_up,
            sealed: store.seal(INBOUND, &[&room_id, &session_id], &pickle)?,
        };
        rows.insert((store.bot, room_id, session_id), row);
    }
    Ok(rows)
}

/// Writes what [`prepare_inbound`] made, backed up to `version` where they are backed up.
///
/// A key that is not backed up goes to the next backup, even if one like it went before: it is saved
/// anew because it became better. A backed-up key without a version keeps the version that it has.
pub(super) async fn save_inbound(
    conn: &mut PgConnection,
    rows: InboundRows,
    version: Option<&str>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, rows): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, room_ids, session_ids): (Vec<_>, Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, room_id, id)| (bot.0, room_id, id)).collect();
    let backed_up: Vec<_> = rows.iter().map(|row| row.backed_up).collect();
    let (sender_keys, sender_data_types, sealed): (Vec<_>, Vec<_>, Vec<_>) = rows
        .into_iter()
        .map(|InboundRow { device: (key, known), sealed, .. }| (key, known, sealed))
        .collect();
    sqlx::query!(
        "-- crypto_store.group_sessions.save_inbound
        INSERT INTO crypto_inbound_group_sessions AS s (
            bot_id, room_id, session_id, sender_key, sender_data_type, backed_up, backed_up_to,
            sealed_session
        )
        SELECT r.bot_id, r.room_id, r.session_id, r.sender_key, r.sender_data_type, r.backed_up,
            CASE WHEN r.backed_up THEN $8 END, r.sealed
        FROM UNNEST(
            $1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::TEXT[], $5::SMALLINT[], $6::BOOLEAN[],
            $7::BYTEA[]
        ) AS r (bot_id, room_id, session_id, sender_key, sender_data_type, backed_up, sealed)
        ON CONFLICT (bot_id, room_id, session_id) DO UPDATE
        SET sender_key = EXCLUDED.sender_key,
            sender_data_type = EXCLUDED.sender_data_type,
            backed_up = EXCLUDED.backed_up,
            backed_up_to = CASE
                WHEN EXCLUDED.backed_up THEN COALESCE(EXCLUDED.backed_up_to, s.backed_up_to)
            END,
            sealed_session = EXCLUDED.sealed_session",
        &bots,
        &room_ids,
        &session_ids,
        &sender_keys,
        &sender_data_types,
        &backed_up,
        &sealed,
        version,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Saves room keys on their own: an import, or a backup that was fetched.
pub(super) async fn import(
    store: &PgCryptoStore,
    sessions: Vec<InboundGroupSession>,
    version: Option<&str>,
) -> Result<()> {
    if sessions.is_empty() {
        return Ok(());
    }
    if sessions.iter().any(|session| session.backed_up() != version.is_some()) {
        warn!(
            version,
            "room keys say otherwise than their backup version whether they are backed up"
        );
    }
    let turn = store.turn().await;
    let rows = prepare_inbound(store, &sessions).await?;
    if version.is_none() {
        return turn.gather(CryptoRows { inbound: rows, ..CryptoRows::default() }).await;
    }
    // The column says what the key does not.
    store.cache().forget_inbound();
    let mut write = turn.begin().await?;
    save_inbound(&mut write.tx, rows, version).await?;
    write.commit().await
}
