//! A homeserver of a few hundred lines, for what a real one cannot be made to do on demand: to lose
//! one answer, to deliver a key late, to refuse one room.
//!
//! It keeps what a homeserver keeps (devices, keys, rooms, to-device inboxes), claims one-time keys
//! for good, and pushes transactions to one greenshield under Synapse's names for things. Faults hit
//! only greenshield's calls; the people here ([`Person`]) are always served well.

mod call;
mod crafted;
mod keys;
mod person;
mod push;
mod ratchets;
mod reach;
mod rooms;
mod state;
mod trap;
mod verifying;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State as Shared},
    http::{HeaderValue, header::RETRY_AFTER},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};

use self::{call::Call, state::State, trap::Planned};
pub use self::{
    call::Seen,
    person::{PATIENCE, Person, Read},
    push::Delivery,
    trap::Trap,
    verifying::End,
};

/// What happens to a call of greenshield instead of its answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer, without the call being carried out.
    Answer { status: u16, body: String },
    /// A page of a proxy that asks for so many seconds of patience in `Retry-After`.
    Later { status: u16, seconds: u64 },
    /// The connection breaks in the middle of the answer; nothing was carried out.
    Broken,
    /// The call is carried out, and the connection breaks in the middle of the answer.
    Lost,
    /// The call is carried out, and no answer ever comes.
    Hang,
    /// No answer ever comes, and nothing was carried out.
    Swallowed,
    /// The answer takes its time.
    Slow(Duration),
    /// The call is carried out and answered when the test says so, once for each call.
    Until(Arc<Notify>),
}

impl Fault {
    pub fn rate_limit(millis: u64) -> Self {
        let body = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests",
            "retry_after_ms": millis });
        Self::Answer { status: 429, body: body.to_string() }
    }

    pub fn refusal(status: u16, errcode: &str) -> Self {
        let body = json!({ "errcode": errcode, "error": "as the test wants it" });
        Self::Answer { status, body: body.to_string() }
    }

    /// What a reverse proxy says when its homeserver is away.
    pub fn html(status: u16) -> Self {
        Self::Answer { status, body: "<html><body>Bad Gateway</body></html>".to_owned() }
    }
}

/// The homeserver; cheap to clone, and gone with its last clone.
#[derive(Clone)]
pub struct FakeHomeserver {
    url: String,
    inner: Arc<Inner>,
    _tasks: Arc<JoinSet<()>>,
}

struct Inner {
    state: Mutex<State>,
    news: Notify,
    http: reqwest::Client,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl FakeHomeserver {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            news: Notify::new(),
            http: crate::support::http(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        tasks.spawn(push::run(Arc::clone(&inner)));
        Ok(Self { url, inner, _tasks: Arc::new(tasks) })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Tells it where its application service listens, from the registration file.
    pub fn connect(&self, registration: &std::path::Path) -> Result<()> {
        let file: Value = serde_yaml::from_str(&std::fs::read_to_string(registration)?)?;
        let text = |key: &str| {
            let value = file[key].as_str().map(ToOwned::to_owned);
            value.with_context(|| format!("no `{key}` in the registration"))
        };
        let appservice = push::Appservice {
            url: text("url")?,
            hs_token: text("hs_token")?,
            as_token: text("as_token")?,
        };
        self.inner.lock().appservice = Some(appservice);
        Ok(())
    }

    /// The next `times` calls of greenshield whose path contains `path` meet `fault`.
    pub fn fault(&self, path: &str, times: usize, fault: Fault) {
        self.inner.lock().faults.push(Planned::new(path, 0, times, fault));
    }

    /// Whatever faults are left happen no more.
    pub fn heal(&self) {
        self.inner.lock().faults.clear();
    }

    /// The calls of greenshield so far whose path contains `path`.
    pub fn calls(&self, path: &str) -> Vec<Seen> {
        let state = self.inner.lock();
        state.seen.iter().filter(|seen| seen.path.contains(path)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.lock()
    }
}

/// Every request comes here.
async fn answer(Shared(inner): Shared<Arc<Inner>>, request: Request) -> Response {
    let Ok(call) = call::read(&inner, request).await else {
        return broken();
    };
    let (fault, met) = inner.lock().fault_of(&call).unzip();
    let met = || met.as_ref().map(|met| met.notify_one());
    match &fault {
        Some(Fault::Answer { status, body }) => {
            inner.lock().note(&call, *status);
            met();
            return respond(*status, body.clone());
        }
        Some(Fault::Later { status, seconds }) => {
            inner.lock().note(&call, *status);
            met();
            let mut answer = respond(*status, "<html><body>Later</body></html>".to_owned());
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(*seconds));
            return answer;
        }
        Some(Fault::Broken) => {
            inner.lock().note(&call, 0);
            met();
            return broken();
        }
        Some(Fault::Swallowed) => {
            inner.lock().note(&call, 0);
            met();
            return std::future::pending().await;
        }
        Some(Fault::Slow(wait)) => {
            inner.lock().reach.waiting.push(call.path.clone());
            tokio::time::sleep(*wait).await;
        }
        Some(Fault::Until(told)) => {
            inner.lock().reach.waiting.push(call.path.clone());
            told.notified().await;
        }
        Some(Fault::Lost | Fault::Hang) | None => {}
    }
    let ping = push::ping(&inner, &call).await;
    let (status, body) = {
        // Whoever sees what a call has done finds it among the calls.
        let mut state = inner.lock();
        let (status, body) = match ping.unwrap_or_else(|| state.answer(&call)) {
            Ok(body) => (200, body),
            Err(refusal) => {
                (refusal.status, json!({ "errcode": refusal.errcode, "error": refusal.error }))
            }
        };
        state.note(&call, status);
        (status, body)
    };
    inner.news.notify_one();
    met();
    match fault {
        Some(Fault::Lost) => broken(),
        Some(Fault::Hang) => std::future::pending().await,
        _ => respond(status, body.to_string()),
    }
}

fn respond(status: u16, body: String) -> Response {
    let status = axum::http::StatusCode::from_u16(status).expect("tests use real status codes");
    (status, body).into_response()
}

/// The head of an answer and some of its body, and then nothing.
fn broken() -> Response {
    let body = futures_util::stream::iter([
        Ok(Bytes::from_static(b"{\"event_id\": \"$tr")),
        Err(std::io::Error::other("broken on purpose")),
    ]);
    Response::new(Body::from_stream(body))
}

impl State {
    fn fault_of(&mut self, call: &Call) -> Option<(Fault, Arc<Notify>)> {
        if !call.by_greenshield {
            return None;
        }
        self.faults.iter_mut().find_map(|planned| planned.hits(call.user(), &call.path))
    }

    fn note(&mut self, call: &Call, status: u16) {
        if call.by_greenshield {
            self.seen.push(call.seen(status));
        }
    }
}
