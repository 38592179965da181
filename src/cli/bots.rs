//! `greenshield bots list|show|repair`

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use ruma::OwnedUserId;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{error::CliError, output};
use crate::{
    clock::Clock,
    config::Config,
    model::{self, RepairOutcome, RepairReason},
    secret::{self, Alphabet},
    store::{
        Connection, Store, StoreError, bots,
        fleet::{self, BotRow, Count},
        open, repairs,
        repairs::Repair,
    },
};

const LIST_EXAMPLES: &str = "\
Examples:
  greenshield bots list
  greenshield bots list --json | jq -r '.[] | select(.last_error or .alarm) | .user_id'";

const SHOW_EXAMPLES: &str = "\
Examples:
  greenshield bots show @bot_helper:example.org
  greenshield bots show @bot_helper:example.org --json | jq .identity.fingerprint";

const REPAIR_EXAMPLES: &str = "\
What it does, at the least that is needed:
  nothing is wrong           fetches lost to-device messages
  stored rows are damaged    drops them: what was in them comes again
  the device is not signed   signs it again
  the device is lost         a new device under the same identity: nobody has to verify again

Lost means: deleted at the homeserver, its keys there or here missing or damaged. The old device is
left alone. It is refused if the homeserver shows another identity than ours, and if ours is damaged
here and no other copy is left.

Examples:
  greenshield bots repair @bot_helper:example.org
  greenshield bots repair @bot_helper:example.org --new-device --wait 300";

/// How often the outcome of a repair is looked for.
const LOOK: Duration = Duration::from_millis(300);
/// A process that was not heard of for so long does not serve.
const SILENT: chrono::Duration = chrono::Duration::seconds(60);
/// How many errors of messages are shown.
const ERRORS: i64 = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists all bots, and how they are.
    #[command(after_long_help = LIST_EXAMPLES)]
    List {
        /// One JSON array instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Shows one bot: its identity, its device, what waits, and what failed last.
    #[command(after_long_help = SHOW_EXAMPLES)]
    Show {
        /// Its Matrix user id.
        #[arg(value_name = "@USER:SERVER")]
        user_id: OwnedUserId,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Mends a bot's device, never its identity. A running `greenshield serve` does it.
    #[command(after_long_help = REPAIR_EXAMPLES)]
    Repair(RepairArguments),
}

#[derive(Debug, Args)]
pub(super) struct RepairArguments {
    /// The bot's Matrix user id.
    #[arg(value_name = "@USER:SERVER")]
    user_id: OwnedUserId,
    /// A new device even if nothing seems wrong with the one it has.
    #[arg(long)]
    new_device: bool,
    /// How many seconds to wait for the outcome.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, command: Command) -> Result<(), CliError> {
    let store = open::open(config.database.url.expose_secret(), 2, &config.sealing.key).await?;
    match command {
        Command::List { json } => list(&store, json).await,
        Command::Show { user_id, json } => show(&store, &user_id, json).await,
        Command::Repair(arguments) => repair(&store, &arguments).await,
    }
}

async fn list(store: &Store, json: bool) -> Result<(), CliError> {
    let mut conn = store.connection().await?;
    let bots = fleet::list(&mut conn, None).await?;
    if json {
        return output::json(&bots);
    }
    if bots.is_empty() {
        output::line("There are no bots: make a code with `greenshield codes mint`.");
    }
    for bot in bots {
        let mut line = format!(
            "{}  {}  {}  last decrypted {}",
            bot.user_id,
            bot.device_id,
            bot.state,
            time(bot.last_decrypted_at)
        );
        if bot.failures > 0 {
            let next = time(bot.next_attempt_at);
            line.extend([format!("  {} failures, next attempt {next}", bot.failures)]);
        }
        if let Some(alarm) = &bot.alarm {
            line.extend(["  alarm: ", alarm]);
        }
        if let Some(error) = &bot.last_error {
            line.extend(["  error: ", error]);
        }
        output::line(&line);
    }
    Ok(())
}

async fn show(store: &Store, user_id: &OwnedUserId, json: bool) -> Result<(), CliError> {
    let mut conn = store.connection().await?;
    let row = find(&mut conn, user_id).await?;
    let identity = bots::identity(&mut conn, row.bot_id).await?;
    let verifications = fleet::verifications(&mut conn, row.bot_id).await?;
    let depth = fleet::depth(&mut conn, row.bot_id).await?;
    let parked = fleet::parked(&mut conn, row.bot_id).await?;
    let send_errors = fleet::send_errors(&mut conn, row.bot_id, ERRORS).await?;
    let repair = repairs::last(&mut conn, row.bot_id).await?;
    if json {
        let mut shown = serde_json::to_value(&row).map_err(|e| CliError::Other(e.into()))?;
        shown["identity"] = identity.map_or(Value::Null, |identity| {
            json!({
                "fingerprint": model::fingerprint(&identity.master_key),
                "msk_public": identity.master_key,
                "ssk_public": identity.self_signing_key,
                "usk_public": identity.user_signing_key,
            })
        });
        shown["verifications"] = counts(&verifications);
        shown["inbox"] = json!({ "entries": depth.inbox, "parked": counts(&parked) });
        shown["outbox"] = json!({
            "queued": depth.outbox_queued, "failed": depth.outbox_failed, "errors": send_errors,
        });
        shown["repair"] = repair.as_ref().map_or(Value::Null, described);
        return output::json(&shown);
    }
    output::line(&format!("{}  {}", row.user_id, row.state));
    output::line(&format!("device         {}", row.device_id));
    if let Some(identity) = identity {
        let fingerprint = model::fingerprint(&identity.master_key);
        output::line(&format!("fingerprint    {fingerprint}"));
        output::line(&format!("self-signing   {}", identity.self_signing_key));
        output::line(&format!("user-signing   {}", identity.user_signing_key));
    } else {
        output::line("identity       none yet");
    }
    output::line(&format!("last decrypted {}", time(row.last_decrypted_at)));
    output::line(&format!("verifications  {}", words(&verifications)));
    output::line(&format!("inbox          {} (parked: {})", depth.inbox, words(&parked)));
    let (queued, failed) = (depth.outbox_queued, depth.outbox_failed);
    output::line(&format!("outbox         {queued} queued, {failed} failed"));
    let next = time(row.next_attempt_at);
    output::line(&format!("next step      {next}, after {} failures", row.failures));
    if let Some(alarm) = &row.alarm {
        output::line(&format!("alarm          since {}: {alarm}", time(row.alarm_at)));
    }
    if let Some(error) = &row.last_error {
        output::line(&format!("error          {}: {error}", time(row.last_error_at)));
    }
    for error in send_errors {
        output::line(&format!("not sent       {error}"));
    }
    if let Some(repair) = repair {
        output::line(&format!("repair         {}", told(&repair, &row.device_id)));
    }
    Ok(())
}

async fn repair(store: &Store, arguments: &RepairArguments) -> Result<(), CliError> {
    let clock = Clock::system();
    let mut tx = store.begin().await?;
    let row = find(&mut tx, &arguments.user_id).await?;
    if row.state != "active" {
        return Err(CliError::Usage(format!(
            "{} is {}: only an active bot can be repaired",
            row.user_id, row.state
        )));
    }
    let reason = if arguments.new_device { RepairReason::NewDevice } else { RepairReason::Asked };
    let device_id = secret::random_string(Alphabet::Upper, 10)
        .map_err(|error| CliError::Other(error.into()))?;
    repairs::ask(&mut tx, row.bot_id, reason, &device_id, clock.now()).await?;
    let served = fleet::is_served(&mut tx, clock.now() - SILENT).await?;
    tx.commit().await.map_err(StoreError::from)?;
    if !served {
        let waiting =
            "the repair is noted, but no `greenshield serve` runs: it is done when one starts";
        return Err(CliError::Other(anyhow::anyhow!(waiting)));
    }

    let mut conn = store.connection().await?;
    let look = async {
        loop {
            match repairs::last(&mut conn, row.bot_id).await? {
                Some(repair) if repair.finished_at.is_some() => break Ok(repair),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(arguments.wait), look).await;
    let Ok(ended) = waited else {
        let last = repairs::last(&mut conn, row.bot_id).await?.and_then(|repair| repair.error);
        let last = last.map_or_else(String::new, |error| format!("; its last attempt: {error}"));
        return Err(CliError::Other(anyhow::anyhow!(
            "the repair goes on, see `greenshield bots show {}`{last}",
            row.user_id
        )));
    };
    let ended: Repair = ended.map_err(|error: StoreError| CliError::Store(error))?;
    let now = find(&mut conn, &arguments.user_id).await?;
    if ended.outcome == Some(RepairOutcome::Refused) {
        return Err(CliError::Other(anyhow::anyhow!(told(&ended, &now.device_id))));
    }
    if arguments.json {
        let mut shown = described(&ended);
        shown["user_id"] = now.user_id.into();
        shown["device_id"] = now.device_id.into();
        return output::json(&shown);
    }
    output::line(&format!("{}: {}", now.user_id, told(&ended, &now.device_id)));
    Ok(())
}

async fn find(conn: &mut Connection, user_id: &OwnedUserId) -> Result<BotRow, CliError> {
    let bot = fleet::list(conn, Some(user_id)).await?.pop();
    bot.ok_or_else(|| {
        let error = format!("there is no bot {user_id}: `greenshield bots list` shows them");
        CliError::Usage(error)
    })
}

/// A repair in words.
fn told(repair: &Repair, device_id: &str) -> String {
    let error = repair.error.as_deref();
    match repair.outcome {
        None => format!(
            "under way since {}{}",
            time(Some(repair.asked_at)),
            error.map_or_else(String::new, |error| format!("; its last attempt: {error}"))
        ),
        Some(RepairOutcome::Healthy) => {
            "nothing was wrong with its device; it fetches what it may have missed".to_owned()
        }
        Some(RepairOutcome::Healed) => {
            "damaged rows were dropped, what was in them comes again; its device is whole"
                .to_owned()
        }
        Some(RepairOutcome::Signed) => "its device was signed by its identity again".to_owned(),
        Some(RepairOutcome::NewDevice) => format!(
            "it has the new device {device_id} under the same identity; {} is left alone",
            repair.old_device_id.as_deref().unwrap_or("the old one")
        ),
        Some(RepairOutcome::Refused) => {
            format!("the repair was refused: {}", error.unwrap_or("nobody said why"))
        }
    }
}

fn described(repair: &Repair) -> Value {
    json!({
        "reason": repair.reason.as_str(),
        "outcome": repair.outcome.map(RepairOutcome::as_str),
        "error": repair.error,
        "old_device_id": repair.old_device_id,
        "asked_at": repair.asked_at,
        "finished_at": repair.finished_at,
    })
}

fn counts(counts: &[Count]) -> Value {
    counts.iter().map(|count| (count.word.clone(), Value::from(count.count))).collect()
}

fn words(counts: &[Count]) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<_> = counts.iter().map(|c| format!("{} {}", c.count, c.word)).collect();
    words.join(", ")
}

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "never".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_repair_has_its_words() {
        let repair = |outcome, error: Option<&str>| Repair {
            reason: RepairReason::Asked,
            asked_at: DateTime::UNIX_EPOCH,
            finished_at: None,
            outcome,
            error: error.map(ToOwned::to_owned),
            old_device_id: Some("OLD".to_owned()),
        };
        let text = told(&repair(Some(RepairOutcome::NewDevice), None), "NEW");
        assert!(text.contains("NEW") && text.contains("OLD"), "{text}");
        let text = told(&repair(Some(RepairOutcome::Refused), Some("alien")), "NEW");
        assert!(text.ends_with("refused: alien"), "{text}");
        let text = told(&repair(None, Some("busy")), "NEW");
        assert!(text.contains("1970") && text.ends_with("busy"), "{text}");
    }
}
