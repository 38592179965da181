//! What operators call: whether this process is alive and ready, and its metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use http::{HeaderName, StatusCode, header};
use serde::Serialize;
use tracing::warn;

use crate::{
    store::{Store, StoreError, health},
    telemetry::Metrics,
};

/// The longest that a question about readiness waits for the database.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether this process is in touch with the homeserver; cheap to clone, and all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    heard: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
}

impl Readiness {
    /// Records that the homeserver has pinged us.
    pub fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
    }

    /// Records that it cannot be reached, or cannot reach us, for the time being.
    pub fn lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Whether it ever pinged us.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether it is away.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// What the operator's routes need; cheap to clone.
#[derive(Clone)]
pub struct Operator {
    store: Store,
    metrics: Metrics,
    readiness: Readiness,
}

impl Operator {
    /// The operator's routes on this process.
    #[must_use]
    pub const fn new(store: Store, metrics: Metrics, readiness: Readiness) -> Self {
        Self { store, metrics, readiness }
    }
}

/// The routes of the operator's listener.
pub fn router(operator: Operator) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(operator)
}

/// What readiness is made of.
#[expect(clippy::struct_field_names, reason = "the wire's names")]
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Ready {
    /// All of the below.
    ready: bool,
    /// The database answers.
    database: bool,
    /// It has all of our migrations.
    schema: bool,
    /// The homeserver has pushed a transaction, or pinged us, and is not away now.
    homeserver_heard: bool,
}

/// `GET /health/live`: always 200; a process that does not answer should be restarted.
async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({"live": true}))
}

/// `GET /health/ready`: 200 or 503.
async fn ready(State(operator): State<Operator>) -> (StatusCode, Json<Ready>) {
    let (database, schema, transaction) =
        match tokio::time::timeout(PATIENCE, look(&operator.store)).await {
            Ok(Ok((schema, transaction))) => (true, schema, transaction),
            Ok(Err(error)) => {
                warn!(%error, "not ready");
                (false, false, false)
            }
            Err(_) => {
                warn!("not ready: the database does not answer");
                (false, false, false)
            }
        };
    let readiness = &operator.readiness;
    let homeserver_heard = !readiness.is_lost() && (transaction || readiness.is_heard());
    let ready = database && schema && homeserver_heard;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, database, schema, homeserver_heard }))
}

/// Whether the schema is whole, and whether a transaction was ever pushed.
async fn look(store: &Store) -> Result<(bool, bool), StoreError> {
    let mut conn = store.pool().acquire().await?;
    if health::pending_migrations(&mut conn).await? > 0 {
        return Ok((false, false));
    }
    Ok((true, health::last_transaction_at(&mut conn).await?.is_some()))
}

/// `GET /metrics`
async fn metrics(State(operator): State<Operator>) -> ([(HeaderName, &'static str); 1], String) {
    let form = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], operator.metrics.render())
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::store::testing::{TestDatabase, database, empty_database};

    async fn ask(database: &TestDatabase, readiness: &Readiness, path: &str) -> (u16, Value) {
        let metrics = Metrics::detached().expect("builds");
        let operator = Operator::new(database.store.clone(), metrics, readiness.clone());
        let request = http::Request::get(path).body(Body::empty()).expect("a request");
        let response = router(operator).oneshot(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 100_000).await.expect("a body");
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn ready_means_migrated_and_heard() {
        let (database, readiness) = (database().await, Readiness::default());
        let path = "/health/ready";
        let deaf = json!({
            "ready": false, "database": true, "schema": true, "homeserver_heard": false
        });
        assert_eq!(ask(&database, &readiness, path).await, (503, deaf));

        database.execute("UPDATE homeserver_state SET last_transaction_at = NOW()").await;
        let (status, body) = ask(&database, &readiness, path).await;
        assert_eq!((status, &body["ready"]), (200, &true.into()));

        database.execute("UPDATE homeserver_state SET last_transaction_at = NULL").await;
        readiness.heard();
        assert_eq!(ask(&database, &readiness, path).await.0, 200);

        readiness.lost();
        database.execute("UPDATE homeserver_state SET last_transaction_at = NOW()").await;
        let (status, body) = ask(&database, &readiness, path).await;
        assert_eq!((status, &body["homeserver_heard"]), (503, &false.into()));
        readiness.heard();
        assert_eq!(ask(&database, &readiness, path).await.0, 200);
    }

    #[tokio::test]
    async fn an_empty_database_is_not_ready_but_the_process_lives() {
        let (database, readiness) = (empty_database().await, Readiness::default());
        let (status, body) = ask(&database, &readiness, "/health/ready").await;
        assert_eq!(
            (status, &body["database"], &body["schema"]),
            (503, &true.into(), &false.into())
        );
        assert_eq!(ask(&database, &readiness, "/health/live").await.0, 200);
        assert_eq!(ask(&database, &readiness, "/metrics").await.0, 200);
    }
}
