//! `place`: whether this is the database that was last served, or a copy of an older state of it.
//!
//! An older state brings back Megolm and Olm ratchets that have moved on since, and a ratchet that is
//! used twice at one position gives both messages away. The rows cannot tell their age; but a copy lies
//! elsewhere than the original: its tables are others, or its cluster is, or the cluster's timeline. So
//! the place is noted, and looked at before anything is sent.
//!
//! - **Other tables, or another cluster**: somebody has restored a dump. Whether anything was lost only
//!   they know: nothing is served until they have said so (`greenshield restored`).
//! - **Another timeline**: a standby took over, perhaps at night, or the cluster was recovered to a point
//!   in time. Bots go on, with new room keys.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};
use tracing::warn;

use super::{StoreError, repairs};

/// A place, as far as PostgreSQL tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    cluster: Option<i64>,
    tables: i64,
    timeline: Option<String>,
}

/// What a place is to the one that was noted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// The same.
    Same,
    /// None was noted yet.
    Unknown,
    /// The same tables on another timeline.
    TookOver,
    /// Other tables, or another cluster.
    Copy,
}

/// Whether this is still the database that was last served.
///
/// # Errors
///
/// The database's own.
pub async fn whereabouts(conn: &mut PgConnection) -> Result<Whereabouts, StoreError> {
    let noted = sqlx::query_as!(
        Place,
        "-- place.noted
        SELECT cluster, tables, timeline FROM place"
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(noted) = noted else { return Ok(Whereabouts::Unknown) };
    let here = here(conn).await?;
    Ok(noted.seen_from(&here))
}

/// To be called before anything is served: notes the place, if it may be served as it is.
///
/// # Errors
///
/// [`StoreError::Restored`] if somebody must first say what was lost; or the database's own.
pub async fn settle(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<(), StoreError> {
    match whereabouts(conn).await? {
        Whereabouts::Same => return Ok(()),
        Whereabouts::Copy => return Err(StoreError::Restored),
        Whereabouts::Unknown => {}
        Whereabouts::TookOver => warn!(
            "the database was recovered, or a standby took over: bots start new room keys; if anything \
             was lost, run `greenshield restored`"
        ),
    }
    repairs::forget_room_keys(conn).await?;
    note(conn, now).await
}

/// Notes this place as the one that is served.
///
/// # Errors
///
/// The database's own.
pub async fn note(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<(), StoreError> {
    let here = here(conn).await?;
    sqlx::query!(
        "-- place.note
        INSERT INTO place (cluster, tables, timeline, noted_at)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (singleton) DO UPDATE
        SET cluster = EXCLUDED.cluster, tables = EXCLUDED.tables, timeline = EXCLUDED.timeline,
            noted_at = EXCLUDED.noted_at",
        here.cluster,
        here.tables,
        here.timeline,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn here(conn: &mut PgConnection) -> Result<Place, StoreError> {
    let tables = sqlx::query_scalar!(
        r#"-- place.tables
        SELECT (oid::BIGINT << 32) | 'crypto_accounts'::REGCLASS::OID::BIGINT AS "tables!"
        FROM pg_database WHERE datname = CURRENT_DATABASE()"#
    )
    .fetch_one(&mut *conn)
    .await?;
    let mut tx = conn.begin().await?;
    let cluster = sqlx::query_scalar!(
        "-- place.cluster
        SELECT system_identifier FROM pg_control_system()"
    )
    .fetch_one(&mut *tx)
    .await;
    tx.rollback().await?;
    let mut tx = conn.begin().await?;
    let timeline = sqlx::query_scalar!(
        "-- place.timeline
        SELECT SUBSTR(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
    )
    .fetch_one(&mut *tx)
    .await;
    tx.rollback().await?;
    Ok(Place { cluster: told(cluster)?, tables, timeline: told(timeline)? })
}

/// Managed PostgreSQLs refuse some questions: what cannot be asked cannot differ.
fn told<T>(answer: Result<Option<T>, sqlx::Error>) -> Result<Option<T>, StoreError> {
    match answer {
        Err(sqlx::Error::Database(_)) => Ok(None),
        answer => Ok(answer?),
    }
}

impl Place {
    fn seen_from(&self, here: &Self) -> Whereabouts {
        let same_cluster = self.cluster.zip(here.cluster).is_none_or(|(noted, now)| noted == now);
        let timelines = self.timeline.as_ref().zip(here.timeline.as_ref());
        if self.tables != here.tables || !same_cluster {
            Whereabouts::Copy
        } else if timelines.is_some_and(|(noted, now)| noted != now) {
            Whereabouts::TookOver
        } else {
            Whereabouts::Same
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{self, TestDatabase};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000, 0).expect("a time")
    }

    async fn settles(database: &TestDatabase) -> Result<(), StoreError> {
        let mut conn = database.store.connection().await.expect("connects");
        settle(&mut conn, now()).await
    }

    async fn room_keys(database: &TestDatabase) -> String {
        database.text("SELECT COUNT(*)::TEXT FROM crypto_outbound_group_sessions").await
    }

    #[tokio::test]
    async fn a_copy_is_not_served_and_a_standby_that_took_over_starts_new_room_keys() {
        let database = testing::database().await;
        let bot = database.bot("@bot_a:x", "A").await;
        let session =
            format!("INSERT INTO crypto_outbound_group_sessions VALUES ({bot}, '!r', '')");
        settles(&database).await.expect("the first time");

        database.execute(&session).await;
        settles(&database).await.expect("the same place");
        assert_eq!(room_keys(&database).await, "1");

        database.execute("UPDATE place SET timeline = 'before'").await;
        settles(&database).await.expect("is served");
        assert_eq!(room_keys(&database).await, "0");
        database.execute(&session).await;
        settles(&database).await.expect("noted");
        assert_eq!(room_keys(&database).await, "1");

        for elsewhere in ["tables = tables + 1", "cluster = cluster + 1"] {
            let noted = database.text("SELECT ROW_TO_JSON(p)::TEXT FROM place p").await;
            database.execute(&format!("UPDATE place SET {elsewhere}")).await;
            assert!(matches!(settles(&database).await, Err(StoreError::Restored)), "{elsewhere}");
            assert_eq!(room_keys(&database).await, "1", "nothing was changed");
            let mut conn = database.store.connection().await.expect("connects");
            note(&mut conn, now()).await.expect("notes");
            settles(&database).await.expect("was told");
            assert_eq!(
                database.text("SELECT ROW_TO_JSON(p)::TEXT FROM place p").await,
                noted,
                "the place is what it was"
            );
        }
    }

    #[test]
    fn what_cannot_be_asked_does_not_differ() {
        let known = Place { cluster: Some(1), tables: 1, timeline: Some("1".to_owned()) };
        let silent = Place { cluster: None, tables: 1, timeline: None };
        assert_eq!(known.seen_from(&silent), Whereabouts::Same);
        assert_eq!(silent.seen_from(&known), Whereabouts::Same);
    }
}
