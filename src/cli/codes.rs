//! `greenshield codes mint|list|revoke`

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use ruma::OwnedUserId;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use url::Url;

use super::{error::CliError, output};
use crate::{
    clock::Clock,
    config::Config,
    model::CodeId,
    secret::{self, Alphabet},
    store::{
        Store, StoreError,
        codes::{self, Code, NewCode},
        open,
    },
};

const MINT_EXAMPLES: &str = "\
Examples:
  greenshield codes mint --inviter @alice:example.org
  greenshield codes mint --inviter @alice:example.org --uses 20 --label ci --expires 7d
  greenshield codes mint --inviter @alice:example.org --json | jq -r .url";

/// How many random characters a code has: 120 bits.
const CODE_LENGTH: usize = 24;
/// How many of a code's first characters stay readable in a list, `gs-` included.
const HINT_LENGTH: usize = 7;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a code, and shows it: only this once.
    #[command(after_long_help = MINT_EXAMPLES)]
    Mint(Mint),
    /// Lists all codes, the newest first.
    List {
        /// One JSON array instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Ends a code. The bots that it made stay.
    Revoke {
        /// Its id, from `codes list`.
        code_id: i64,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Mint {
    /// The human with whom its bots open their encrypted direct room.
    #[arg(long, value_name = "@USER:SERVER")]
    inviter: OwnedUserId,
    /// How many bots it may make.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    uses: i32,
    /// What you call it.
    #[arg(long, default_value = "")]
    label: String,
    /// When it stops working, from now: 30m, 12h, 7d, 4w. Never, if left out.
    #[arg(long, value_parser = span)]
    expires: Option<Duration>,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, command: Command) -> Result<(), CliError> {
    let store = open::open(config.database.url.expose_secret(), 2, &config.sealing.key).await?;
    let now = Clock::system().now();
    match command {
        Command::Mint(mint) => mint_code(config, &store, &mint, now).await,
        Command::List { json } => list(&store, json, now).await,
        Command::Revoke { code_id, json } => revoke(&store, CodeId(code_id), json, now).await,
    }
}

async fn mint_code(
    config: &Config,
    store: &Store,
    mint: &Mint,
    now: DateTime<Utc>,
) -> Result<(), CliError> {
    let drawn = secret::random_string(Alphabet::Readable, CODE_LENGTH);
    let code = format!("gs-{}", drawn.map_err(|error| CliError::Other(error.into()))?);
    let expires_at = mint.expires.map(|span| now + span);
    let new = NewCode {
        hash: &secret::digest(&code),
        hint: &code[..HINT_LENGTH],
        label: &mint.label,
        inviter: &mint.inviter,
        max_uses: mint.uses,
        expires_at,
    };
    let mut conn = store.pool().acquire().await.map_err(StoreError::from)?;
    let code_id = codes::insert(&mut conn, new, now).await?;
    let url = link(&config.public.base_url, &code);
    if mint.json {
        return output::json(&json!({
            "code": code,
            "code_id": code_id,
            "url": url,
            "inviter": mint.inviter,
            "label": mint.label,
            "uses": mint.uses,
            "expires_at": expires_at.map(time),
        }));
    }
    output::line(&format!("Code {code_id}, shown only now: {code}"));
    output::line(&format!("Page: {url}"));
    Ok(())
}

async fn list(store: &Store, json: bool, now: DateTime<Utc>) -> Result<(), CliError> {
    let mut conn = store.pool().acquire().await.map_err(StoreError::from)?;
    let codes = codes::list(&mut conn).await?;
    if json {
        let codes: Vec<Value> = codes.iter().map(|code| described(code, now)).collect();
        return output::json(&codes);
    }
    if codes.is_empty() {
        output::line("There are no codes: make one with `greenshield codes mint`.");
    }
    for code in codes {
        let (state, expires) = (state(&code, now), code.expires_at.map_or("never".into(), time));
        output::line(&format!(
            "{}  {}...  {state}  {}/{} used  inviter {}  expires {expires}  {}",
            code.id, code.hint, code.used, code.max_uses, code.inviter, code.label
        ));
    }
    Ok(())
}

async fn revoke(
    store: &Store,
    code: CodeId,
    json: bool,
    now: DateTime<Utc>,
) -> Result<(), CliError> {
    let mut conn = store.pool().acquire().await.map_err(StoreError::from)?;
    let revoked = codes::revoke(&mut conn, code, now).await?;
    if !revoked && !codes::list(&mut conn).await?.iter().any(|known| known.id == code) {
        let error = format!("there is no code {code}: `greenshield codes list` shows the ids");
        return Err(CliError::Usage(error));
    }
    if json {
        return output::json(&json!({"code_id": code, "revoked": true, "changed": revoked}));
    }
    let already = if revoked { "" } else { " already" };
    output::line(&format!("Code {code} is{already} revoked. The bots that it made stay."));
    Ok(())
}

fn described(code: &Code, now: DateTime<Utc>) -> Value {
    json!({
        "code_id": code.id,
        "hint": code.hint,
        "label": code.label,
        "inviter": code.inviter,
        "uses": code.max_uses,
        "used": code.used,
        "state": state(code, now),
        "created_at": time(code.created_at),
        "expires_at": code.expires_at.map(time),
        "revoked_at": code.revoked_at.map(time),
    })
}

fn state(code: &Code, now: DateTime<Utc>) -> &'static str {
    if code.revoked_at.is_some() {
        "revoked"
    } else if code.expires_at.is_some_and(|at| at <= now) {
        "expired"
    } else if code.used >= code.max_uses {
        "used up"
    } else {
        "valid"
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The signup page with the code filled in.
fn link(base_url: &Url, code: &str) -> String {
    format!("{}/signup?code={code}", base_url.as_str().trim_end_matches('/'))
}

/// A span of time such as `7d`.
fn span(text: &str) -> Result<Duration, String> {
    const CURE: &str = "write a number and s, m, h, d or w, such as 7d";
    let unit = text.chars().next_back().ok_or(CURE)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return Err(CURE.to_owned()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| CURE)?;
    let span = number.checked_mul(seconds).filter(|span| (1..=3_153_600_000).contains(span));
    span.map(Duration::seconds).ok_or_else(|| format!("{CURE}: more than none, at most a century"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_a_number_and_a_unit() {
        assert_eq!(span("7d"), Ok(Duration::days(7)));
        assert_eq!(span("30m"), Ok(Duration::minutes(30)));
        for text in ["", "d", "7", "-1d", "0s", "7x", "7é", "99999999999999999d"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_link_keeps_the_path_of_the_base_url() {
        let base = |url| Url::parse(url).expect("a URL");
        assert_eq!(link(&base("http://a"), "gs-x"), "http://a/signup?code=gs-x");
        assert_eq!(link(&base("http://a/b/"), "gs-x"), "http://a/b/signup?code=gs-x");
    }
}
