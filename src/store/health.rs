//! Whether the database is as this program needs it, and when the homeserver was last heard.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{MIGRATIONS, StoreError};

/// How many of our migrations the database lacks.
///
/// # Errors
///
/// The database's own.
pub async fn pending_migrations(conn: &mut PgConnection) -> Result<usize, StoreError> {
    let applied = applied(conn).await?;
    let ours = MIGRATIONS.iter().filter(|m| m.migration_type.is_up_migration());
    Ok(ours.filter(|ours| !applied.contains(&ours.version)).count())
}

/// A migration that the database has and we do not know: a newer version of this program was here.
///
/// # Errors
///
/// The database's own.
pub async fn unknown_migration(conn: &mut PgConnection) -> Result<Option<i64>, StoreError> {
    let applied = applied(conn).await?;
    Ok(applied.into_iter().find(|version| !MIGRATIONS.version_exists(*version)))
}

/// When the homeserver last pushed a transaction, to any process.
///
/// # Errors
///
/// The database's own.
pub async fn last_transaction_at(
    conn: &mut PgConnection,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let at = sqlx::query_scalar!(
        "-- health.last_transaction_at
        SELECT last_transaction_at FROM homeserver_state"
    )
    .fetch_optional(conn)
    .await?;
    Ok(at.flatten())
}

/// The migrations that were applied; the table is sqlx's own, and not there before the first.
async fn applied(conn: &mut PgConnection) -> Result<Vec<i64>, StoreError> {
    let exists = sqlx::query_scalar!(
        r#"-- health.has_migrations
        SELECT TO_REGCLASS('_sqlx_migrations') IS NOT NULL AS "exists!""#
    )
    .fetch_one(&mut *conn)
    .await?;
    if !exists {
        return Ok(Vec::new());
    }
    // Not checked at compile time: the table is not of our migrations.
    let versions = sqlx::query_scalar::<_, i64>(
        "-- health.applied
        SELECT version FROM _sqlx_migrations WHERE success ORDER BY version",
    )
    .fetch_all(conn)
    .await?;
    Ok(versions)
}
