//! `bots.alarm`: what is wrong with the way in which the homeserver shows a bot, and when it was last asked.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::model::BotId;

/// Records what a look found wrong with the way in which the homeserver shows a bot, or that nothing is
/// (`None`). It stays until the next look, whatever the bot's steps do.
///
/// # Errors
///
/// The database's own.
pub async fn note(
    conn: &mut PgConnection,
    bot: BotId,
    alarm: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- alarms.note
        UPDATE bots
        SET alarm = $2, identity_checked_at = $3,
            alarm_at = CASE WHEN $2::TEXT IS NULL THEN NULL WHEN alarm = $2 THEN alarm_at ELSE $3 END
        WHERE bot_id = $1",
        bot.0,
        alarm,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether it was before `before` that the homeserver last answered what it shows of a bot.
///
/// # Errors
///
/// The database's own.
pub async fn is_check_due(
    conn: &mut PgConnection,
    bot: BotId,
    before: DateTime<Utc>,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- alarms.is_check_due
        SELECT EXISTS (
            SELECT FROM bots
            WHERE bot_id = $1 AND (identity_checked_at IS NULL OR identity_checked_at < $2)
        ) AS "due!""#,
        bot.0,
        before,
    )
    .fetch_one(conn)
    .await?)
}

#[cfg(test)]
mod tests {
    use chrono::Duration;

    use super::*;
    use crate::store::{bots, testing};

    #[tokio::test]
    async fn an_alarm_stays_until_a_look_finds_it_gone_whatever_steps_say() {
        let database = testing::database().await;
        let bot = database.bot("@bot_a:x", "DEV").await;
        let other = database.bot("@bot_b:x", "DEV").await;
        let mut conn = database.store.connection().await.expect("connects");
        let at = |minutes: i64| DateTime::UNIX_EPOCH + Duration::minutes(minutes);
        let told = async || {
            database
                .text(&format!(
                    "SELECT CONCAT_WS('|', COALESCE(alarm, '-'), EXTRACT(MINUTE FROM alarm_at),
                        COALESCE(last_error, '-')) FROM bots WHERE bot_id = {bot}"
                ))
                .await
        };
        assert_eq!(told().await, "-|-");
        assert!(is_check_due(&mut conn, bot, at(0)).await.expect("asks"), "never looked");

        note(&mut conn, bot, Some("an alien"), at(1)).await.expect("notes");
        assert_eq!(told().await, "an alien|1|-");
        assert!(!is_check_due(&mut conn, bot, at(1)).await.expect("asks"), "looked just now");
        assert!(is_check_due(&mut conn, bot, at(2)).await.expect("asks"), "looked long ago");
        for (error, left) in [(Some("a step failed"), "a step failed"), (None, "-")] {
            let said = bots::Note { bot, error: error.map(ToOwned::to_owned), at: at(2) };
            bots::note(&mut conn, [(bot, said)].into()).await.expect("notes");
            assert_eq!(told().await, format!("an alien|1|{left}"));
        }
        note(&mut conn, bot, Some("an alien"), at(3)).await.expect("notes");
        assert_eq!(told().await, "an alien|1|-", "since when it is so");
        note(&mut conn, bot, Some("two aliens"), at(4)).await.expect("notes");
        assert_eq!(told().await, "two aliens|4|-");
        note(&mut conn, bot, None, at(5)).await.expect("notes");
        assert_eq!(told().await, "-|-");
        let others = format!("SELECT COUNT(alarm)::TEXT FROM bots WHERE bot_id = {other}");
        assert_eq!(database.text(&others).await, "0");
    }
}
