//! Transactions, under Synapse's names for things.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    FakeHomeserver, Inner,
    call::{Answer, Call, refuse},
    reach,
    state::State,
};

/// How many room events Synapse puts into one transaction.
const MOST_EVENTS: usize = 100;

/// Where greenshield listens, and what each side shows the other.
#[derive(Clone)]
pub struct Appservice {
    pub url: String,
    pub hs_token: String,
    pub as_token: String,
}

/// What is kept back for the time being.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    pub events: bool,
    pub to_device: bool,
}

/// How to-device messages reach bots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By transaction, and they lie in the device's inbox, too.
    Pushed,
    /// They only lie in the inbox: what happens when Synapse gives a transaction up.
    InboxOnly,
    /// They are on their way, and come when this is changed.
    Late,
}

/// What is to be pushed.
#[derive(Default)]
pub struct Queue {
    pub events: Vec<Value>,
    pub to_device: Vec<Value>,
    pub changed: BTreeSet<String>,
    pub held: Held,
    pub drop_to_device: bool,
    pub forgetful: bool,
    pub refused: usize,
    pub accepted: usize,
    pub late_to_device: Vec<(String, String, Value)>,
    pub in_flight: bool,
}

impl State {
    fn transaction(&mut self) -> Option<(Appservice, String, Value)> {
        let appservice = self.appservice.clone()?;
        let queue = &mut self.queue;
        let most = if queue.held.events { 0 } else { MOST_EVENTS };
        let events: Vec<Value> = queue.events.drain(..most.min(queue.events.len())).collect();
        let to_device = std::mem::take(&mut queue.to_device);
        let changed = std::mem::take(&mut queue.changed);
        queue.in_flight = !(events.is_empty() && to_device.is_empty() && changed.is_empty());
        if !queue.in_flight {
            return None;
        }
        let body = json!({
            "events": events,
            "de.sorunome.msc2409.to_device": to_device,
            "org.matrix.msc3202.device_lists": { "changed": changed, "left": [] },
        });
        Some((appservice, format!("t{}", self.next()), body))
    }
}

/// Pushes whatever there is, for ever, in order.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        let next = inner.lock().transaction();
        let Some((appservice, id, mut body)) = next else {
            inner.news.notified().await;
            continue;
        };
        loop {
            let to = inner.lock().reach.next(&appservice);
            let put = put(&inner, &to, &id, body.to_string()).await;
            if put.is_ok_and(|(status, _)| status == 200) {
                break;
            }
            inner.lock().queue.failed(&mut body);
            reach::pause(&inner).await;
        }
        inner.lock().queue.accepted += 1;
    }
}

impl Queue {
    /// This transaction comes again, as it is; or, as from Synapse, with its room events only, and
    /// without what it would have been good to know meanwhile.
    fn failed(&mut self, body: &mut Value) {
        self.refused += 1;
        if self.forgetful {
            *body = json!({ "events": body["events"] });
            self.to_device.clear();
            self.changed.clear();
        }
    }
}

async fn put(inner: &Inner, to: &Appservice, id: &str, body: String) -> Result<(u16, Value)> {
    let url = format!("{}/_matrix/app/v1/transactions/{id}", to.url);
    let timeout = inner.lock().reach.timeout();
    let request = inner.http.put(url).bearer_auth(&to.hs_token).body(body);
    match request.timeout(timeout).send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            Ok((status, answer.json().await.unwrap_or_default()))
        }
        // Not there (yet): as good as an error answer, the transaction is kept.
        Err(_) => Ok((0, Value::Null)),
    }
}

/// `POST /appservice/{id}/ping`: answered once greenshield has answered ours.
pub(super) async fn ping(inner: &Inner, call: &Call) -> Option<Answer> {
    if !(call.path.contains("/appservice/") && call.path.ends_with("/ping")) {
        return None;
    }
    let appservice = inner.lock().appservice.clone()?;
    let to = inner.lock().reach.next(&appservice);
    let url = format!("{}/_matrix/app/v1/ping", to.url);
    let sent = inner.http.post(url).bearer_auth(&to.hs_token).json(&call.body).send().await;
    Some(match sent {
        Ok(answer) if answer.status().is_success() => {
            inner.lock().reach.pinged();
            Ok(json!({ "duration_ms": 1 }))
        }
        _ => refuse(502, "M_BAD_STATUS", "it does not answer"),
    })
}

impl FakeHomeserver {
    /// How to-device messages reach bots from now on; what was late comes now.
    pub fn to_device(&self, delivery: Delivery) {
        let mut state = self.lock();
        state.queue.held.to_device = delivery == Delivery::Late;
        state.queue.drop_to_device = delivery == Delivery::InboxOnly;
        if delivery != Delivery::Late {
            for (user, device, event) in std::mem::take(&mut state.queue.late_to_device) {
                state.deliver(&user, &device, &event);
            }
        }
        drop(state);
        self.inner.news.notify_one();
    }

    /// From now on a transaction that fails loses all but its room events, and while they fail
    /// nothing else is kept for later ones: so does Synapse. To-device messages lie in the inbox.
    pub fn forget_like_synapse(&self) {
        self.lock().queue.forgetful = true;
    }

    /// How often greenshield did not take a transaction.
    pub fn refused(&self) -> usize {
        self.lock().queue.refused
    }

    /// How many transactions greenshield has taken.
    pub fn accepted(&self) -> usize {
        self.lock().queue.accepted
    }

    /// How many events wait to be pushed.
    pub fn unpushed(&self) -> usize {
        self.lock().queue.events.len()
    }

    /// Whether room events are kept back.
    pub fn hold_events(&self, held: bool) {
        self.lock().queue.held.events = held;
        self.inner.news.notify_one();
    }

    /// A to-device message from nowhere.
    pub fn send_to_device(&self, user: &str, device: &str, event: &Value) {
        self.lock().deliver(user, device, event);
        self.inner.news.notify_one();
    }

    /// Whether everything was pushed.
    pub fn is_pushed(&self) -> bool {
        self.all_pushed().is_some()
    }

    /// How many transactions greenshield has taken, if none is under way and nothing waits for one.
    pub fn all_pushed(&self) -> Option<usize> {
        let state = self.lock();
        let queue = &state.queue;
        let is_pushed = queue.events.is_empty()
            && queue.to_device.is_empty()
            && queue.changed.is_empty()
            && !queue.in_flight;
        is_pushed.then_some(queue.accepted)
    }

    /// [`FakeHomeserver::all_pushed`] while events are held back.
    pub fn to_device_pushed(&self) -> Option<usize> {
        let state = self.lock();
        let queue = &state.queue;
        (queue.to_device.is_empty() && !queue.in_flight).then_some(queue.accepted)
    }

    /// Pushes this very transaction; the answer.
    pub async fn transaction(&self, id: &str, body: &Value) -> Result<(u16, Value)> {
        self.raw_transaction(id, body.to_string(), None).await
    }

    /// Pushes anything at all, with any token.
    pub async fn raw_transaction(
        &self,
        id: &str,
        body: String,
        token: Option<&str>,
    ) -> Result<(u16, Value)> {
        let mut to = self.appservice();
        if let Some(token) = token {
            to.hs_token = token.to_owned();
        }
        put(&self.inner, &to, id, body).await
    }

    /// Announces a transaction of so many bytes, and sends none of them; the whole answer.
    pub async fn announce_transaction(&self, id: &str, bytes: usize) -> Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let to = self.appservice();
        let host = to.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        let head = format!(
            "PUT /_matrix/app/v1/transactions/{id} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Authorization: Bearer {}\r\nContent-Length: {bytes}\r\n\r\n",
            to.hs_token
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Asks greenshield something, as the homeserver.
    pub async fn ask(&self, path: &str) -> Result<(u16, Value)> {
        let to = self.appservice();
        let url = format!("{}/_matrix/app/v1/{path}", to.url);
        let answer = self.inner.http.get(url).bearer_auth(&to.hs_token).send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    fn appservice(&self) -> Appservice {
        self.lock().appservice.clone().expect("connect() comes first")
    }
}
