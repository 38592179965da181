//! What all bots share: the connection, what is known of rooms, and who tracks whom.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, Url};
use ruma::OwnedUserId;
use serde_json::Value;

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    homeserver: String,
    rooms: Arc<Mutex<HashMap<String, Room>>>,
    /// Bots by the user whose devices they track.
    tracking: Arc<Mutex<HashMap<String, HashSet<String>>>>,
}

#[derive(Default)]
struct Room {
    bots: HashSet<String>,
    readers: Option<Arc<[OwnedUserId]>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    pub fn new(homeserver: String) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Self { http, homeserver, rooms: Arc::default(), tracking: Arc::default() })
    }

    /// A request as `bot`; the answer's body.
    pub async fn call(
        &self,
        method: Method,
        path: &[&str],
        bot: (&str, &str),
        body: Option<Vec<u8>>,
    ) -> Result<axum::body::Bytes> {
        let mut url: Url = self.homeserver.parse()?;
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("the homeserver's address has no path"))?
            .extend(["_matrix", "client", "v3"])
            .extend(path);
        url.query_pairs_mut().append_pair("user_id", bot.0).append_pair("device_id", bot.1);
        let mut request = self.http.request(method, url).bearer_auth("ceiling");
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        ensure!(status.is_success(), "{path:?}: {status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Notes a membership; whatever was known of the room's readers is asked for again.
    pub fn member(&self, room: &str, user: &str, membership: &str, is_bot: bool) {
        let mut rooms = lock(&self.rooms);
        let room = rooms.entry(room.to_owned()).or_default();
        room.readers = None;
        if is_bot && membership == "join" {
            room.bots.insert(user.to_owned());
        } else if membership != "join" {
            room.bots.remove(user);
        }
    }

    pub fn bots_in(&self, room: &str) -> Vec<String> {
        let rooms = lock(&self.rooms);
        rooms.get(room).map(|room| room.bots.iter().cloned().collect()).unwrap_or_default()
    }

    /// Who reads what is said in `room`; the homeserver is asked once.
    pub async fn readers(&self, room: &str, bot: (&str, &str)) -> Result<Arc<[OwnedUserId]>> {
        if let Some(known) = lock(&self.rooms).get(room).and_then(|room| room.readers.clone()) {
            return Ok(known);
        }
        let path = ["rooms", room, "state", "m.room.encryption", ""];
        let encryption = self.call(Method::GET, &path, bot, None).await?;
        let encryption: Value = serde_json::from_slice(&encryption)?;
        ensure!(encryption["algorithm"] == "m.megolm.v1.aes-sha2", "{room} is not encrypted");
        let members = self.call(Method::GET, &["rooms", room, "members"], bot, None).await?;
        let members: Value = serde_json::from_slice(&members)?;
        let members = members["chunk"].as_array().context("no members")?.iter();
        let readers: Arc<[OwnedUserId]> = members
            .filter(|member| member["content"]["membership"] != "leave")
            .filter_map(|member| OwnedUserId::try_from(member["state_key"].as_str()?).ok())
            .collect();
        lock(&self.rooms).entry(room.to_owned()).or_default().readers = Some(readers.clone());
        Ok(readers)
    }

    pub fn track(&self, bot: &str, users: &[OwnedUserId]) {
        let mut tracking = lock(&self.tracking);
        for user in users {
            if let Some(bots) = tracking.get_mut(user.as_str()) {
                if !bots.contains(bot) {
                    bots.insert(bot.to_owned());
                }
            } else {
                tracking.insert(user.to_string(), [bot.to_owned()].into());
            }
        }
    }

    /// Bots that track `user`.
    pub fn tracking(&self, user: &str) -> Vec<String> {
        lock(&self.tracking)
            .get(user)
            .map(|bots| bots.iter().cloned().collect())
            .unwrap_or_default()
    }
}
