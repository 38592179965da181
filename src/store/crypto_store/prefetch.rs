//! What machines ask for first, for many bots in one query.
//!
//! A machine reads its rows one by one, some fifteen round trips before it has done anything. What it
//! will read is known beforehand from the work that waits for its bot: so the first of many that needs
//! anything brings the rows of all of them. Each row is used once, still sealed, and is no longer here
//! once the store writes what it is about.

use std::collections::{BTreeSet, HashMap};

use matrix_sdk_crypto::olm::OutboundGroupSession;
use sqlx::PgConnection;

use super::{PgCryptoStore, group_sessions::Row as InboundRow, rows::CryptoRows};
use crate::{model::BotId, store::StoreError};

/// Whose rows, and about whom.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The bot.
    pub bot: BotId,
    /// Whether its machine is still to be opened.
    pub opens: bool,
    /// The users whose devices and identities its machine will ask for.
    pub users: BTreeSet<String>,
    /// The Curve25519 keys of devices that have written to it over Olm.
    pub sender_keys: BTreeSet<String>,
    /// The rooms that it may send to.
    pub rooms: BTreeSet<String>,
    /// The room keys under which messages have come: room and session.
    pub room_keys: BTreeSet<(String, String)>,
}

impl Wanted {
    /// Whether there is nothing to be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.opens
            && self.users.is_empty()
            && self.sender_keys.is_empty()
            && self.rooms.is_empty()
            && self.room_keys.is_empty()
    }
}

/// Rows by what they are stored under: an empty list where there are none, nothing where nobody looked.
type By<T> = HashMap<String, T>;

/// One bot's rows, sealed.
#[derive(Default)]
pub struct Prefetched {
    /// With the identity key.
    pub(super) account: Option<(String, Vec<u8>)>,
    /// All there are, by name.
    pub(super) values: Option<By<Vec<u8>>>,
    /// All there are, by name.
    pub(super) custom_values: Option<By<Vec<u8>>>,
    /// All there are, and whether each is dirty.
    pub(super) tracked: Option<Vec<(String, bool)>>,
    /// By user: device ids and devices.
    pub(super) devices: By<Vec<(String, Vec<u8>)>>,
    /// By user.
    pub(super) identities: By<Option<Vec<u8>>>,
    /// By sender key: session ids and sessions.
    pub(super) sessions: By<Vec<(String, Vec<u8>)>>,
    /// By room.
    pub(super) outbound: By<Option<Vec<u8>>>,
    /// By room and session.
    pub(super) inbound: HashMap<(String, String), Option<InboundRow>>,
    /// Whether the bot is known to have asked nobody for anything.
    pub(super) no_requests: bool,
}

impl Prefetched {
    fn empty(wanted: &Wanted) -> Self {
        Self {
            account: None,
            values: wanted.opens.then(By::new),
            custom_values: wanted.opens.then(By::new),
            tracked: wanted.opens.then(Vec::new),
            devices: wanted.users.iter().map(|user| (user.clone(), Vec::new())).collect(),
            identities: wanted.users.iter().map(|user| (user.clone(), None)).collect(),
            sessions: wanted.sender_keys.iter().map(|key| (key.clone(), Vec::new())).collect(),
            outbound: wanted.rooms.iter().map(|room| (room.clone(), None)).collect(),
            inbound: wanted.room_keys.iter().map(|key| (key.clone(), None)).collect(),
            no_requests: wanted.opens,
        }
    }

    /// Whether the bot's account is among them.
    #[must_use]
    pub const fn has_account(&self) -> bool {
        self.account.is_some()
    }

    /// Forgets whatever `rows` and `outbound` change.
    pub(super) fn forget(&mut self, rows: &CryptoRows, outbound: &[OutboundGroupSession]) {
        if !rows.accounts.is_empty() {
            self.account = None;
        }
        if !rows.values.is_empty() {
            self.values = None;
        }
        if !rows.tracked.is_empty() {
            self.tracked = None;
        }
        for (_, user, _) in rows.devices.keys() {
            self.devices.remove(user);
        }
        for (_, user) in rows.identities.keys() {
            self.identities.remove(user);
        }
        for (_, sender_key, _) in rows.sessions.keys() {
            self.sessions.remove(sender_key);
        }
        for session in outbound {
            self.outbound.remove(session.room_id().as_str());
        }
        for (_, room, session) in rows.inbound.keys() {
            self.inbound.remove(&(room.clone(), session.clone()));
        }
    }

    fn add(&mut self, kind: &str, key: String, second: String, sealed: Vec<u8>) {
        match kind {
            "account" => self.account = Some((key, sealed)),
            "value" => _ = self.values.get_or_insert_default().insert(key, sealed),
            "custom_value" => _ = self.custom_values.get_or_insert_default().insert(key, sealed),
            "tracked" => self.tracked.get_or_insert_default().push((key, second == "dirty")),
            "device" => self.devices.entry(key).or_default().push((second, sealed)),
            "identity" => _ = self.identities.insert(key, Some(sealed)),
            "session" => self.sessions.entry(key).or_default().push((second, sealed)),
            "outbound" => _ = self.outbound.insert(key, Some(sealed)),
            "room_key" | "backed_up_room_key" => {
                let at = (key.clone(), second.clone());
                let row = InboundRow {
                    room_id: key,
                    session_id: second,
                    backed_up: kind != "room_key",
                    sealed_session: sealed,
                };
                self.inbound.insert(at, Some(row));
            }
            _ => self.no_requests = false,
        }
    }
}

impl PgCryptoStore {
    /// The same store, with rows of its bot that were read after anybody last wrote them.
    #[must_use]
    pub fn with_prefetched(self, prefetched: Prefetched) -> Self {
        if prefetched.no_requests {
            self.cache().note_requests(false);
        }
        *self.prefetched() = prefetched;
        self
    }

    /// Takes in rows of its bot about whom and what it [lacks](Self::lacking), read after anybody last
    /// wrote them. Of those that came before, nobody has asked for what is left.
    pub fn take_prefetched(&self, newer: Prefetched) {
        let Prefetched { devices, identities, sessions, outbound, inbound, .. } = newer;
        let mut prefetched = self.prefetched();
        prefetched.devices = devices;
        prefetched.identities = identities;
        prefetched.sessions = sessions;
        prefetched.outbound = outbound;
        prefetched.inbound = inbound;
    }

    /// What of this the store has not in memory.
    #[must_use]
    pub fn lacking(&self, wanted: Wanted) -> Wanted {
        let cache = self.cache();
        Wanted {
            users: wanted.users.into_iter().filter(|user| !cache.has_user(user)).collect(),
            sender_keys: wanted
                .sender_keys
                .into_iter()
                .filter(|sender_key| !cache.has_sessions(sender_key))
                .collect(),
            rooms: wanted.rooms.into_iter().filter(|room| !cache.has_outbound(room)).collect(),
            room_keys: wanted.room_keys.into_iter().filter(|key| !cache.has_inbound(key)).collect(),
            ..wanted
        }
    }
}

/// The rows of all these bots, in one query.
///
/// # Errors
///
/// The database's own.
pub async fn prefetch(
    conn: &mut PgConnection,
    wanted: &[Wanted],
) -> Result<HashMap<BotId, Prefetched>, StoreError> {
    let opened: Vec<i64> =
        wanted.iter().filter(|wanted| wanted.opens).map(|wanted| wanted.bot.0).collect();
    let (of_users, users) = pairs(wanted, |wanted| &wanted.users);
    let (of_keys, keys) = pairs(wanted, |wanted| &wanted.sender_keys);
    let (of_rooms, rooms) = pairs(wanted, |wanted| &wanted.rooms);
    let (of_room_keys, (key_rooms, key_sessions)): (Vec<_>, (Vec<_>, Vec<_>)) = wanted
        .iter()
        .flat_map(|wanted| wanted.room_keys.iter().map(|key| (wanted.bot.0, key.clone())))
        .unzip();
    let rows = sqlx::query!(
        r#"-- crypto_store.prefetch
        WITH of_users AS MATERIALIZED (
            SELECT * FROM UNNEST($2::BIGINT[], $3::TEXT[]) AS u (bot_id, user_id)
        )
        SELECT bot_id AS "bot_id!", kind AS "kind!", key AS "key!", second AS "second!",
            sealed AS "sealed!"
        FROM (
            SELECT bot_id, 'account' AS kind, identity_key AS key, '' AS second,
                sealed_account AS sealed
            FROM crypto_accounts WHERE bot_id = ANY($1)
            UNION ALL
            SELECT bot_id, 'value', name, '', sealed_value
            FROM crypto_values WHERE bot_id = ANY($1)
            UNION ALL
            SELECT bot_id, 'custom_value', name, '', sealed_value
            FROM crypto_custom_values WHERE bot_id = ANY($1)
            UNION ALL
            SELECT bot_id, 'tracked', user_id, CASE WHEN dirty THEN 'dirty' ELSE '' END, ''
            FROM crypto_tracked_users WHERE bot_id = ANY($1)
            UNION ALL
            SELECT bot_id, 'device', user_id, device_id, sealed_device
            FROM of_users JOIN crypto_devices USING (bot_id, user_id)
            UNION ALL
            SELECT bot_id, 'identity', user_id, '', sealed_identity
            FROM of_users JOIN crypto_identities USING (bot_id, user_id)
            UNION ALL
            SELECT bot_id, 'session', sender_key, session_id, sealed_session
            FROM UNNEST($4::BIGINT[], $5::TEXT[]) AS k (bot_id, sender_key)
            JOIN crypto_olm_sessions USING (bot_id, sender_key)
            UNION ALL
            SELECT bot_id, 'outbound', room_id, '', sealed_session
            FROM UNNEST($6::BIGINT[], $7::TEXT[]) AS r (bot_id, room_id)
            JOIN crypto_outbound_group_sessions USING (bot_id, room_id)
            UNION ALL
            SELECT bot_id, CASE WHEN backed_up THEN 'backed_up_room_key' ELSE 'room_key' END,
                room_id, session_id, sealed_session
            FROM UNNEST($8::BIGINT[], $9::TEXT[], $10::TEXT[]) AS i (bot_id, room_id, session_id)
            JOIN crypto_inbound_group_sessions USING (bot_id, room_id, session_id)
            UNION ALL
            SELECT DISTINCT bot_id, 'request', '', '', ''::BYTEA
            FROM crypto_requests WHERE bot_id = ANY($1)
        ) AS rows"#,
        &opened,
        &of_users,
        &users,
        &of_keys,
        &keys,
        &of_rooms,
        &rooms,
        &of_room_keys,
        &key_rooms,
        &key_sessions,
    )
    .fetch_all(conn)
    .await?;
    let mut all: HashMap<BotId, Prefetched> =
        wanted.iter().map(|wanted| (wanted.bot, Prefetched::empty(wanted))).collect();
    for row in rows {
        if let Some(prefetched) = all.get_mut(&BotId(row.bot_id)) {
            prefetched.add(&row.kind, row.key, row.second, row.sealed);
        }
    }
    Ok(all)
}

fn pairs(wanted: &[Wanted], of: fn(&Wanted) -> &BTreeSet<String>) -> (Vec<i64>, Vec<String>) {
    wanted
        .iter()
        .flat_map(|wanted| of(wanted).iter().map(|key| (wanted.bot.0, key.clone())))
        .unzip()
}
