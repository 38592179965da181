//! A homeserver that costs as little as one can: maps in memory, JSON passed on as text, nothing
//! written down. What it costs, it costs every contestant.
//!
//! It keeps devices, keys and rooms, claims one-time keys for good, pushes transactions as Synapse
//! does, bots' own messages among them, and counts the answers to a [`course`].

pub mod call;
pub mod course;
mod keys;
pub mod push;
pub mod rooms;
pub mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State as Shared},
    http::{Response, StatusCode},
};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};

use self::{call::Call, push::Appservice, state::State};

pub const SERVER_NAME: &str = "bench.example.org";

/// The homeserver; cheap to clone, and gone with its last clone.
#[derive(Clone)]
pub struct Homeserver {
    pub url: String,
    inner: Arc<Inner>,
    _tasks: Arc<JoinSet<()>>,
}

struct Inner {
    state: Mutex<State>,
    queued: Notify,
    answered: Notify,
    http: reqwest::Client,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Homeserver {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            queued: Notify::new(),
            answered: Notify::new(),
            http: reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?,
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                let _ = stream.set_nodelay(true);
            });
            let _ = axum::serve(listener, router).await;
        });
        tasks.spawn(push::run(Arc::clone(&inner)));
        Ok(Self { url, inner, _tasks: Arc::new(tasks) })
    }

    /// What it keeps, to look at or to change; what was queued goes out once this is let go.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.inner.lock());
        self.inner.queued.notify_one();
        result
    }

    /// Pushes to this application service from now on.
    pub fn connect(&self, url: &str, hs_token: &str) {
        let to = Appservice { url: url.to_owned(), hs_token: hs_token.to_owned() };
        self.with(|state| state.queue.appservice = Some(to));
    }

    /// Waits until `there`, looking after each request and now and then.
    pub async fn until(
        &self,
        what: &str,
        patience: Duration,
        there: impl Fn(&State) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !there(&self.inner.lock()) {
            ensure!(Instant::now() < deadline, "gave up waiting for {what}");
            let news = self.inner.answered.notified();
            let _ = tokio::time::timeout(Duration::from_millis(5), news).await;
        }
        Ok(())
    }

    /// Waits until everything was pushed.
    pub async fn pushed(&self) -> Result<()> {
        self.until("the queue to be empty", Duration::from_secs(120), |s| s.queue.is_empty()).await
    }
}

/// Every request comes here.
async fn answer(Shared(inner): Shared<Arc<Inner>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return respond(400, Bytes::from_static(b"{\"errcode\":\"M_NOT_JSON\"}"));
    };
    let call = Call { method: parts.method, uri: parts.uri, body };
    let answer = inner.lock().answer(&call);
    inner.queued.notify_one();
    inner.answered.notify_one();
    match answer {
        Ok(body) => respond(200, body),
        Err((status, errcode)) => {
            let body = format!("{{\"errcode\":\"{errcode}\",\"error\":\"as in a benchmark\"}}");
            respond(status, body.into())
        }
    }
}

fn respond(status: u16, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, json);
    response
}
