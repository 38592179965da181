//! Opening the store: connecting, migrating, and the data key.
//!
//! Nothing is written before the configured key has been tried on the data key that is there: a wrong
//! key, or the wrong database, is noticed while it still has no consequence.

use std::str::FromStr as _;

use chrono::{DateTime, Utc};
use sqlx::{
    Connection as _, PgConnection, PgPool, migrate::MigrateError, postgres::PgConnectOptions,
};

use super::{MIGRATIONS, SealError, Sealer, Store, StoreError, WrappingKey, health};

/// Why the store could not be opened; each text names the cure.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not one.
    #[error(
        "`database.url` is no PostgreSQL URL: write it like \
         `postgres://user:password@host:5432/greenshield`"
    )]
    Url(#[source] sqlx::Error),
    /// Nobody answers there, or lets us in.
    #[error(
        "the database cannot be reached: see that PostgreSQL runs where `database.url` says, and that \
         user, password and database name are right"
    )]
    Unreachable(#[source] sqlx::Error),
    /// A newer version of this program was here.
    #[error(
        "the database was migrated by a newer greenshield (migration {0}): run that version, or restore \
         a backup from before"
    )]
    Newer(i64),
    /// Migrations are missing.
    #[error("the database lacks {0} migrations: run `greenshield migrate`")]
    Behind(usize),
    /// There is no data key yet.
    #[error("the database has no data key yet: run `greenshield migrate`")]
    NoKey,
    /// The data key is gone, and what it has sealed is not.
    #[error(
        "the database has bots, but the data key that seals their keys is gone (`sealing_key` is empty): \
         bring this table back from a backup of the database; a new data key would open nothing"
    )]
    KeyGone,
    /// It is a restored copy.
    #[error(
        "the database was restored from a backup, or moved here: run `greenshield restored`, which says \
         what it does, and then start again"
    )]
    Restored,
    /// Migrations could not be applied.
    #[error(
        "the migrations could not be applied: nothing of the failed one was kept; see the cause"
    )]
    Migration(#[source] MigrateError),
    /// The configured key is not this database's.
    #[error(transparent)]
    Key(#[from] SealError),
    /// The database failed in another way.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    /// Whether the database is only away (it starts, stops, is full, or nobody answers), so that it may be
    /// there later without anybody changing our configuration.
    #[must_use]
    pub fn is_away(&self) -> bool {
        let (Self::Unreachable(error) | Self::Store(StoreError::Database(error))) = self else {
            return false;
        };
        match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                // Connection exceptions, too few resources, operator intervention; "not accepting
                // connections".
                ["08", "53", "57P"].iter().any(|class| code.starts_with(class)) || code == "55000"
            }),
            _ => false,
        }
    }
}

/// Opens the store as it is: refuses a schema that is older or newer than this program.
///
/// # Errors
///
/// [`OpenError`].
pub async fn open(url: &str, max_connections: u32, key: &WrappingKey) -> Result<Store, OpenError> {
    let pool = connect(url, max_connections).await?;
    let mut conn = pool.acquire().await.map_err(OpenError::Unreachable)?;
    refuse_newer(&mut conn).await?;
    let pending = health::pending_migrations(&mut conn).await?;
    if pending > 0 {
        return Err(OpenError::Behind(pending));
    }
    let wrapped = wrapped_key(&mut conn).await?.ok_or(OpenError::NoKey)?;
    drop(conn);
    Ok(Store::new(pool, Sealer::unwrap(key, &wrapped)?))
}

/// Opens the store and brings it up to date: applies migrations (several processes take turns), and
/// makes the data key the first time.
///
/// # Errors
///
/// [`OpenError`].
pub async fn open_and_migrate(
    url: &str,
    max_connections: u32,
    key: &WrappingKey,
    now: DateTime<Utc>,
) -> Result<Store, OpenError> {
    let pool = connect(url, max_connections).await?;
    let mut conn = pool.acquire().await.map_err(OpenError::Unreachable)?;
    refuse_newer(&mut conn).await?;
    if let Some(wrapped) = wrapped_key(&mut conn).await? {
        Sealer::unwrap(key, &wrapped)?;
    }
    MIGRATIONS.run(&mut *conn).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => OpenError::Newer(version),
        error => OpenError::Migration(error),
    })?;
    let sealer = data_key(&mut conn, key, now).await?;
    drop(conn);
    Ok(Store::new(pool, sealer))
}

/// Wraps the data key by `new` instead of `old`, in one transaction. Whoever has the data key goes on
/// with it; whoever opens the store from now on needs `new`.
///
/// # Errors
///
/// [`OpenError`]; [`OpenError::Key`] if `old` is not the key in use, and then nothing is changed.
pub async fn rotate(
    url: &str,
    old: &WrappingKey,
    new: &WrappingKey,
    now: DateTime<Utc>,
) -> Result<(), OpenError> {
    let pool = connect(url, 1).await?;
    let mut tx = pool.begin().await.map_err(OpenError::Unreachable)?;
    refuse_newer(&mut tx).await?;
    // Of two that rotate at once, the second finds the first one's key, and is refused.
    sqlx::query!(
        "-- open.hold_key
        SELECT singleton FROM sealing_key FOR UPDATE"
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(StoreError::from)?;
    let wrapped = wrapped_key(&mut tx).await?.ok_or(OpenError::NoKey)?;
    let rewrapped = Sealer::unwrap(old, &wrapped)?.wrap(new)?;
    sqlx::query!(
        "-- open.rotate
        UPDATE sealing_key SET wrapped = $1, rewrapped_at = $2",
        rewrapped,
        now,
    )
    .execute(&mut *tx)
    .await
    .map_err(StoreError::from)?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

async fn connect(url: &str, max_connections: u32) -> Result<PgPool, OpenError> {
    let options = PgConnectOptions::from_str(url).map_err(OpenError::Url)?;
    let options = options.application_name("greenshield");
    // One connection without the pool, which would try again until its timeout and then tell of that.
    let conn = PgConnection::connect_with(&options).await.map_err(OpenError::Unreachable)?;
    // It was only to see; if it does not close in an orderly way, the server notices.
    let _ = conn.close().await;
    Ok(super::pool(options, max_connections))
}

async fn refuse_newer(conn: &mut PgConnection) -> Result<(), OpenError> {
    let unknown = health::unknown_migration(conn).await?;
    unknown.map_or(Ok(()), |version| Err(OpenError::Newer(version)))
}

/// The data key, made if there is none and nothing is sealed yet: of several processes that try, one's
/// stays.
async fn data_key(
    conn: &mut PgConnection,
    key: &WrappingKey,
    now: DateTime<Utc>,
) -> Result<Sealer, OpenError> {
    let new = Sealer::generate()?.wrap(key)?;
    sqlx::query!(
        "-- open.data_key
        INSERT INTO sealing_key (wrapped, created_at)
        SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM bots)
        ON CONFLICT (singleton) DO NOTHING",
        new,
        now,
    )
    .execute(&mut *conn)
    .await
    .map_err(StoreError::from)?;
    let wrapped = wrapped_key(conn).await?.ok_or(OpenError::KeyGone)?;
    Ok(Sealer::unwrap(key, &wrapped)?)
}

/// The wrapped data key, if the table is there and has one.
async fn wrapped_key(conn: &mut PgConnection) -> Result<Option<Vec<u8>>, OpenError> {
    let exists = sqlx::query_scalar!(
        r#"-- open.has_sealing_key
        SELECT TO_REGCLASS('sealing_key') IS NOT NULL AS "exists!""#
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(StoreError::from)?;
    if !exists {
        return Ok(None);
    }
    let wrapped = sqlx::query_scalar!(
        "-- open.wrapped_key
        SELECT wrapped FROM sealing_key"
    )
    .fetch_optional(conn)
    .await
    .map_err(StoreError::from)?;
    Ok(wrapped)
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;
    use crate::store::testing;

    fn key(byte: u8) -> WrappingKey {
        SecretBox::new(Box::new([byte; 32]))
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000, 0).expect("a time")
    }

    #[tokio::test]
    async fn the_first_start_makes_the_data_key_and_later_ones_need_it() {
        let database = testing::empty_database().await;
        let url = database.url();
        assert!(matches!(open(&url, 2, &key(1)).await, Err(OpenError::Behind(_))));

        let first = open_and_migrate(&url, 2, &key(1), now()).await.expect("opens");
        let sealed = first.sealer().seal("t", None, b"canary").expect("seals");
        let second = open_and_migrate(&url, 2, &key(1), now()).await.expect("opens again");
        assert_eq!(**second.sealer().open("t", None, &sealed).expect("opens"), *b"canary");
        open(&url, 2, &key(1)).await.expect("opens without migrating");

        let wrong = open_and_migrate(&url, 2, &key(2), now()).await;
        assert!(matches!(wrong, Err(OpenError::Key(SealError::WrongKey))));
    }

    #[tokio::test]
    async fn a_data_key_that_is_gone_is_not_made_anew_while_there_are_bots() {
        let database = testing::database().await;
        let url = database.url();
        database.bot("@bot_a:x", "DEV").await;
        let gone = open_and_migrate(&url, 2, &key(1), now()).await;
        assert!(matches!(gone, Err(OpenError::KeyGone)));
        assert_eq!(database.text("SELECT COUNT(*)::TEXT FROM sealing_key").await, "0");
        database.execute("DELETE FROM bots").await;
        open_and_migrate(&url, 2, &key(1), now()).await.expect("nothing is sealed yet");
    }

    #[tokio::test]
    async fn a_new_key_takes_the_old_ones_place_while_others_go_on() {
        let database = testing::empty_database().await;
        let url = database.url();
        let running = open_and_migrate(&url, 2, &key(1), now()).await.expect("opens");
        let before = running.sealer().seal("t", None, b"before").expect("seals");

        let wrong = rotate(&url, &key(3), &key(2), now()).await;
        assert!(matches!(wrong, Err(OpenError::Key(SealError::WrongKey))));
        open(&url, 2, &key(1)).await.expect("nothing was changed");
        rotate(&url, &key(1), &key(2), now()).await.expect("rotates");

        let after = running.sealer().seal("t", None, b"after").expect("goes on");
        let restarted = open(&url, 2, &key(2)).await.expect("opens with the new key");
        for (sealed, clear) in [(before, &b"before"[..]), (after, b"after")] {
            let opened = restarted.sealer().open("t", None, &sealed).expect("opens");
            assert_eq!(&opened[..], clear);
        }
        assert_eq!(restarted.sealer().hash("t", b"k"), running.sealer().hash("t", b"k"));
        for old in [
            open(&url, 2, &key(1)).await.map(drop),
            open_and_migrate(&url, 2, &key(1), now()).await.map(drop),
            rotate(&url, &key(1), &key(3), now()).await,
        ] {
            assert!(matches!(old, Err(OpenError::Key(SealError::WrongKey))));
        }
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let database = testing::database().await;
        database
            .execute(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                VALUES (99990101000000, 'newer', TRUE, '', 0)",
            )
            .await;
        for result in [
            open(&database.url(), 2, &key(1)).await,
            open_and_migrate(&database.url(), 2, &key(1), now()).await,
        ] {
            assert!(matches!(result, Err(OpenError::Newer(99_990_101_000_000))));
        }
    }

    #[tokio::test]
    async fn a_database_that_is_not_there_is_told_apart() {
        let gone = "postgres://nobody@127.0.0.1:1/none";
        let gone = open(gone, 2, &key(1)).await.err().expect("nobody is there");
        assert!(matches!(gone, OpenError::Unreachable(_)) && gone.is_away(), "{gone:?}");
        assert!(matches!(open("nonsense", 2, &key(1)).await, Err(OpenError::Url(_))));

        // Wherever it says no, waiting helps nobody.
        let database = testing::empty_database().await;
        let url: url::Url = database.url().parse().expect("a URL");
        let (mut stranger, mut nowhere) = (url.clone(), url.clone());
        stranger.set_username("nobody_of_this_name").expect("takes a user");
        nowhere.set_path("none_of_this_name");
        for wrong in [stranger, nowhere] {
            let refused = open(wrong.as_str(), 2, &key(1)).await.err().expect("is refused");
            assert!(
                matches!(refused, OpenError::Unreachable(_)) && !refused.is_away(),
                "{refused:?}"
            );
        }
        assert!(!open(url.as_str(), 2, &key(1)).await.err().expect("is empty").is_away());

        // One that lets nobody in for the time being.
        let name = url.path().trim_start_matches('/');
        let mut admin = url.clone();
        admin.set_path("postgres");
        let mut admin = PgConnection::connect(admin.as_str()).await.expect("connects");
        let closed = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS FALSE");
        sqlx::raw_sql(sqlx::AssertSqlSafe(closed)).execute(&mut admin).await.expect("closes");
        assert!(open(url.as_str(), 2, &key(1)).await.err().expect("is closed").is_away());
    }
}
