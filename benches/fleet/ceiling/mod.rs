//! The ceiling: the least that an application service can do to answer encrypted messages. One
//! `OlmMachine` a bot in memory behind HTTP, and nothing that survives its process.
//!
//! It does the whole of the protocol: it asks who is in a room and how it is encrypted, queries and
//! claims keys, shares room keys and starts new ones, and uploads one-time keys. It does not tell
//! whether anything was lost, retries nothing, and knows no bot after it has ended.

mod bot;
mod client;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    routing::{get, post, put},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use tokio::{net::TcpListener, task::JoinSet};

use self::{
    bot::{Bot, News},
    client::Client,
};

/// A bot that is to exist.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewBot {
    pub user_id: String,
    pub device_id: String,
}

struct Service {
    client: Client,
    bots: Mutex<HashMap<String, Arc<Bot>>>,
}

/// What is read of a transaction.
#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    events: Vec<Box<RawValue>>,
    #[serde(default, rename = "de.sorunome.msc2409.to_device")]
    to_device: Vec<Box<RawValue>>,
    #[serde(default, rename = "org.matrix.msc3202.device_one_time_keys_count")]
    counts: HashMap<String, HashMap<String, HashMap<String, u32>>>,
    #[serde(default, rename = "org.matrix.msc3202.device_lists")]
    lists: Lists,
}

#[derive(Default, Deserialize)]
struct Lists {
    #[serde(default)]
    changed: Vec<String>,
}

#[derive(Deserialize)]
struct EventHead<'a> {
    #[serde(borrow, rename = "type")]
    kind: &'a str,
    room_id: &'a str,
    sender: &'a str,
    state_key: Option<&'a str>,
    #[serde(default)]
    content: Membership<'a>,
}

#[derive(Default, Deserialize)]
struct Membership<'a> {
    #[serde(borrow)]
    membership: Option<&'a str>,
}

#[derive(Deserialize)]
struct ToDeviceHead<'a> {
    to_user_id: &'a str,
}

/// Serves until it is killed; prints nothing.
pub async fn serve(homeserver: String, listen: String) -> Result<()> {
    let service = Arc::new(Service { client: Client::new(homeserver)?, bots: Mutex::default() });
    let router = Router::new()
        .route("/_matrix/app/v1/transactions/{id}", put(transaction))
        .route("/bots", post(make))
        .route("/ready", get(|| async {}))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(service);
    let listener = TcpListener::bind(listen).await?;
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await?;
    Ok(())
}

/// Makes bots: a machine each, with an identity, and all its keys uploaded.
async fn make(
    State(service): State<Arc<Service>>,
    Json(bots): Json<Vec<NewBot>>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let failed = |error: anyhow::Error| (StatusCode::BAD_GATEWAY, format!("{error:#}"));
    let mut making = JoinSet::new();
    let mut bots = bots.into_iter();
    loop {
        while making.len() < 8
            && let Some(bot) = bots.next()
        {
            making.spawn(Bot::make(service.client.clone(), bot));
        }
        let Some(made) = making.join_next().await else { break };
        let bot = made.map_err(anyhow::Error::from).and_then(|bot| bot).map_err(failed)?;
        service.lock().insert(bot.user_id.to_string(), Arc::new(bot));
    }
    Ok(Json(json!({})))
}

impl Service {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Bot>>> {
        self.bots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deals a transaction out to its bots, and answers.
async fn transaction(
    State(service): State<Arc<Service>>,
    body: Bytes,
) -> Result<&'static str, (StatusCode, String)> {
    let bad = |error: serde_json::Error| (StatusCode::BAD_REQUEST, error.to_string());
    let transaction: Transaction = serde_json::from_slice(&body).map_err(bad)?;
    let bots = service.lock();
    let mut news: HashMap<&str, News> = HashMap::new();
    for message in transaction.to_device {
        let head: ToDeviceHead<'_> = serde_json::from_str(message.get()).map_err(bad)?;
        if let Some((user, _)) = bots.get_key_value(head.to_user_id) {
            news.entry(user).or_default().to_device.push(message);
        }
    }
    for event in transaction.events {
        let head: EventHead<'_> = serde_json::from_str(event.get()).map_err(bad)?;
        if let (Some(user), Some(membership)) = (head.state_key, head.content.membership)
            && head.kind == "m.room.member"
        {
            service.client.member(head.room_id, user, membership, bots.contains_key(user));
            continue;
        }
        if head.kind != "m.room.encrypted" {
            continue;
        }
        for user in service.client.bots_in(head.room_id) {
            if let Some((user, _)) = bots.get_key_value(&user)
                && user != head.sender
            {
                let event = (head.room_id.to_owned(), event.clone());
                news.entry(user).or_default().events.push(event);
            }
        }
    }
    for (user, devices) in transaction.counts {
        let left = devices.values().next().and_then(|counts| counts.get("signed_curve25519"));
        if let Some((user, _)) = bots.get_key_value(&user)
            && left.is_none_or(|left| *left < 50)
        {
            news.entry(user).or_default().one_time_keys = Some(left.copied().unwrap_or(0));
        }
    }
    for changed in &transaction.lists.changed {
        for user in service.client.tracking(changed) {
            if let Some((user, _)) = bots.get_key_value(&user) {
                news.entry(user).or_default().changed.push(changed.clone());
            }
        }
    }
    for (user, news) in news {
        if let Some(bot) = bots.get(user) {
            bot.tell(news);
        }
    }
    Ok("{}")
}
