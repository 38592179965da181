//! The `CryptoStore` of matrix-sdk-crypto on Postgres: one database for the whole fleet.
//!
//! A [`PgCryptoStore`] is one bot's view of the `crypto_*` tables. Making one does no I/O and holds no
//! connection, so ten thousand of them cost as much as their structs.
//!
//! Three rules hold for everything here:
//!
//! - **Every statement says whose.** The bot is the first part of every key, and no statement leaves
//!   it out ([`prune_olm_hashes`] is about the fleet, and says so).
//! - **Every write is fenced.** A write is one transaction that first holds the shard's lease, so a
//!   process that lost it changes nothing, however late it wakes up. Within a process the writes of a
//!   store take [turns](Turn): what is pickled later is written later.
//! - **Every value is sealed to its row.** Beyond the table and the bot, which the
//!   [`Sealer`](super::Sealer) puts inside the seal, we put the row's key there: whoever can write to
//!   the database can lose a bot's data, but cannot pass one device, room key or trust decision off
//!   as another.
//!
//! Many rows travel in one statement (`UNNEST` of arrays, in the order of their keys), so that a batch
//! of a hundred room keys is as many round trips as a single one.
//!
//! Where upstream's stores differ from each other we follow the in-memory one in what is a key (a room
//! key is a room *and* a session) and the SQLite one in what is a write (a key that is saved as not
//! backed up is to be backed up again).

mod account;
mod backup;
mod cache;
mod changes;
mod damage;
mod device;
mod devices;
mod error;
mod group_sessions;
mod outbound;
mod prefetch;
mod requests;
mod rooms;
mod rows;
mod seal;
mod sessions;
#[cfg(test)]
mod tests;
mod traits;
mod users;
mod values;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex as StdMutex, MutexGuard as StdMutexGuard, OnceLock, PoisonError, RwLock},
    time::SystemTime,
};

use chrono::{DateTime, Utc};
use matrix_sdk_crypto::olm::{OutboundGroupSession, StaticAccountData};
use ruma::{OwnedRoomId, RoomId};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use self::{cache::Cache, error::Failure};
pub use self::{
    device::{AccountState, forget_device},
    error::{PgCryptoStoreError, is_damage, lease_lost},
    prefetch::{Prefetched, Wanted, prefetch},
    rows::CryptoRows,
    sessions::prune_olm_hashes,
    users::{forget, strangers},
};
use super::{Fence, Store, StoreError};
use crate::{clock::Clock, model::BotId};

type Result<T, E = PgCryptoStoreError> = std::result::Result<T, E>;

/// Into how many shards bots are dealt; `bots.shard` is generated from the same number.
const SHARDS: i64 = 64;

/// By what right a store writes.
#[derive(Clone, Copy, Debug)]
enum Writer {
    Fenced(Fence),
    /// Tests of what is stored, which have no lease to lose.
    #[cfg(test)]
    Unfenced,
}

/// What was saved and is not written yet.
#[derive(Default)]
struct Gathered {
    rows: CryptoRows,
    /// The sessions that the bot sends with. Each message changes one of them, and so they are pickled
    /// when they are written, as they are by then.
    outbound: HashMap<OwnedRoomId, OutboundGroupSession>,
    /// The last stored session of each device that was asked about, as long as nothing is written.
    read_to_end: HashMap<(String, i16), String>,
}

impl Gathered {
    /// All of it, as rows; nothing is left.
    async fn take(&mut self, store: &PgCryptoStore) -> Result<CryptoRows> {
        let Self { mut rows, outbound, .. } = std::mem::take(self);
        rows.outbound = outbound::prepare(store, outbound).await?;
        Ok(rows)
    }
}

/// One bot's crypto store; clones are the same store.
///
/// Have one per bot and process: the turns that keep an older pickle from overwriting a newer one, and
/// what was read and gathered, are kept in memory.
#[derive(Clone)]
pub struct PgCryptoStore {
    store: Store,
    bot: BotId,
    writer: Writer,
    clock: Clock,
    /// Who we are, which sessions need when they are loaded; known once the account is.
    account: Arc<RwLock<Option<StaticAccountData>>>,
    /// Whose turn it is to write, and what was gathered and not written yet.
    gathered: Arc<Mutex<Gathered>>,
    gathers: bool,
    cache: Arc<StdMutex<Cache>>,
    prefetched: Arc<StdMutex<Prefetched>>,
    /// The first thing that failed.
    failure: Arc<OnceLock<Failure>>,
}

impl fmt::Debug for PgCryptoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgCryptoStore")
            .field("bot", &self.bot)
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

impl PgCryptoStore {
    /// The store of `bot`, which writes as long as `fence` holds. No I/O.
    #[must_use]
    pub fn new(store: Store, bot: BotId, fence: Fence) -> Self {
        Self::with_writer(store, bot, Writer::Fenced(fence))
    }

    /// The same store by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    #[cfg(test)]
    fn unfenced(store: Store, bot: BotId) -> Self {
        Self::with_writer(store, bot, Writer::Unfenced)
    }

    fn with_writer(store: Store, bot: BotId, writer: Writer) -> Self {
        Self {
            store,
            bot,
            writer,
            clock: Clock::system(),
            account: Arc::default(),
            gathered: Arc::default(),
            gathers: false,
            cache: Arc::default(),
            prefetched: Arc::default(),
            failure: Arc::default(),
        }
    }

    /// The same store, but what is saved is only gathered, until [`PgCryptoStore::take_gathered`] or a
    /// read of what is among it. Whoever sends anything that follows from it writes it first.
    #[must_use]
    pub fn gathering(mut self) -> Self {
        self.gathers = true;
        self
    }

    /// What was gathered, to be written together with what else the caller writes.
    ///
    /// # Errors
    ///
    /// If anything has failed in this store before: the machine takes some failures for answers (a
    /// message that it cannot decrypt, a session that there is not), and what it made of them is to be
    /// written nowhere.
    pub async fn take_gathered(&self) -> Result<CryptoRows> {
        match self.failure.get() {
            Some(failure) => Err(failure.again()),
            None => self.gathered.lock().await.take(self).await,
        }
    }

    /// Remembers a failure beyond the machine, which may hear of it and not tell.
    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if let Some(failure) = result.as_ref().err().and_then(Failure::of) {
            // The first one is what the others follow from.
            let _ = self.failure.set(failure);
        }
        result
    }

    /// Whether the room's session can encrypt one more message as it is: shared, not invalidated and
    /// not used up. `false` also where that is not known.
    #[must_use]
    pub fn may_encrypt(&self, room_id: &RoomId, now: SystemTime) -> bool {
        self.cache().may_encrypt(room_id, now)
    }

    /// About how much memory the store takes for what it remembers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.cache().bytes()
    }

    fn cache(&self) -> StdMutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows that nobody has asked for yet.
    fn prefetched(&self) -> StdMutexGuard<'_, Prefetched> {
        self.prefetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was gathered if that `touches` what is about to be read.
    async fn settle(&self, touches: impl FnOnce(&CryptoRows) -> bool) -> Result<()> {
        self.settle_if(|gathered| touches(&gathered.rows)).await
    }

    /// [`PgCryptoStore::settle`], looking at all that was gathered.
    async fn settle_if(&self, touches: impl FnOnce(&Gathered) -> bool) -> Result<()> {
        let turn = self.turn().await;
        if !touches(&turn.gathered) {
            return Ok(());
        }
        turn.write().await?.commit().await
    }

    /// Who we are, if the account was loaded or saved through this store.
    #[must_use]
    pub fn get_static_account(&self) -> Option<StaticAccountData> {
        self.account.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_static_account(&self, account: StaticAccountData) {
        *self.account.write().unwrap_or_else(PoisonError::into_inner) = Some(account);
    }

    /// Who we are, loading the account if nobody has.
    async fn static_account(&self) -> Result<StaticAccountData> {
        if let Some(account) = self.get_static_account() {
            return Ok(account);
        }
        let account = account::load(self).await?.ok_or(PgCryptoStoreError::NoAccount)?;
        Ok(account.static_data().clone())
    }

    const fn pool(&self) -> &PgPool {
        self.store.pool()
    }

    /// Waits for the writes before this one.
    async fn turn(&self) -> Turn<'_> {
        Turn { store: self, gathered: self.gathered.lock().await }
    }
}

/// The right to be the next to write. Pickle what is to be written while holding it: an Olm session
/// that was pickled before somebody else's write and written after it would go back in time.
struct Turn<'a> {
    store: &'a PgCryptoStore,
    gathered: MutexGuard<'a, Gathered>,
}

impl<'a> Turn<'a> {
    /// Gathers rows, or writes them at once if the store does not gather.
    async fn gather(self, rows: CryptoRows) -> Result<()> {
        self.gather_with(rows, Vec::new()).await
    }

    /// [`Turn::gather`] with sessions that the bot sends with.
    async fn gather_with(
        mut self,
        rows: CryptoRows,
        outbound: Vec<OutboundGroupSession>,
    ) -> Result<()> {
        if rows.is_empty() && outbound.is_empty() {
            return Ok(());
        }
        self.store.prefetched().forget(&rows, &outbound);
        self.gathered.rows.merge(rows);
        for session in outbound {
            outbound::note(self.store, &session).await;
            self.gathered.outbound.insert(session.room_id().to_owned(), session);
        }
        if self.store.gathers {
            return Ok(());
        }
        self.write().await?.commit().await
    }

    /// Begins a write of whatever the caller likes, under the fence, with what was gathered before.
    async fn begin(self) -> Result<Write<'a>> {
        *self.store.prefetched() = Prefetched::default();
        self.write().await
    }

    /// Begins the write of what was gathered.
    async fn write(mut self) -> Result<Write<'a>> {
        // Written or not, it is not here any more: after a failure the machine is thrown away.
        let gathered = self.gathered.take(self.store).await?;
        let mut tx = match self.store.writer {
            // A lease on another shard gives no right to this bot.
            Writer::Fenced(fence) if self.store.bot.0 % SHARDS != i64::from(fence.shard) => {
                return Err(StoreError::LeaseLost.into());
            }
            Writer::Fenced(fence) => self.store.store.begin_fenced(fence).await?,
            #[cfg(test)]
            Writer::Unfenced => self.store.pool().begin().await?,
        };
        gathered.write(&mut tx).await?;
        let now = self.store.clock.now();
        Ok(Write { tx, bot: self.store.bot, now, _turn: self.gathered })
    }
}

/// A write under way: dropped without [`Write::commit`] it never was.
struct Write<'a> {
    tx: Transaction<'static, Postgres>,
    bot: BotId,
    now: DateTime<Utc>,
    _turn: MutexGuard<'a, Gathered>,
}

impl Write<'_> {
    async fn commit(self) -> Result<()> {
        Ok(self.tx.commit().await?)
    }
}
