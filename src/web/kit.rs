//! What all listeners share, put around a router.

use std::time::{Duration, Instant};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::info;

use super::ApiError;

/// What one listener accepts.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Its name in log lines and metrics.
    pub listener: &'static str,
    /// The largest body.
    pub body_bytes: usize,
    /// The longest that a request may take; longer than anything that a handler waits for.
    pub timeout: Duration,
    /// The most connections at a time.
    pub connections: usize,
    /// The longest that a client may take for a request's head, or say nothing between two requests.
    pub idle: Duration,
    /// The longest that a client may take to read an answer.
    pub taken: Duration,
    /// How old a connection gets: the first answer after that is its last. `None`: it never ends so.
    pub life: Option<Duration>,
}

/// `router` with bounds, a log line and metrics per request, and Matrix-shaped answers to everything.
/// To be called last: it does not cover routes that are added afterwards.
pub fn finish(router: Router, bounds: Bounds) -> Router {
    let Bounds { listener, body_bytes, timeout, .. } = bounds;
    router
        .fallback(async || ApiError::unrecognized())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(body_bytes))
        .layer(from_fn(move |request, next| limit_body(body_bytes, request, next)))
        .layer(from_fn(move |request, next| limit_time(timeout, request, next)))
        .layer(CatchPanicLayer::custom(move |_| panicked(listener)))
        .layer(from_fn(move |request, next| record(listener, request, next)))
}

/// Refuses by `Content-Length`; a body that does not say its length is bounded by the extractors.
async fn limit_body(limit: usize, request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return ApiError::too_large(Some(limit)).into_response();
    }
    next.run(request).await
}

async fn limit_time(limit: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "M_UNKNOWN",
            format!("This took longer than {} seconds: try again", limit.as_secs()),
        )
        .into_response(),
    }
}

/// Where it did so is in the log (`telemetry::tell_panics`); what it says may be a secret.
fn panicked(listener: &'static str) -> Response {
    metrics::counter!("greenshield_handler_panics_total", "listener" => listener).increment(1);
    ApiError::internal("a handler panicked").into_response()
}

/// One line and two metrics per request. The path is the route's pattern: neither the query nor what
/// stands in for a parameter is kept, because either may be a secret.
async fn record(listener: &'static str, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let (status, took) = (response.status(), started.elapsed());
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    info!(listener, %method, path, status = status.as_u16(), ms, "request");
    metrics::counter!(
        "greenshield_http_requests_total",
        "listener" => listener,
        "method" => known(&method),
        "path" => path.clone(),
        "status" => status.as_u16().to_string(),
    )
    .increment(1);
    metrics::histogram!("greenshield_http_request_seconds", "listener" => listener, "path" => path)
        .record(took.as_secs_f64());
    response
}

/// Clients can make methods up; metrics shall not grow with them.
fn known(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        routing::{get, post},
    };
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;
    use crate::web::{MatrixBytes, MatrixJson};

    fn router() -> Router {
        let router = Router::new()
            .route("/bytes", post(async |MatrixBytes(bytes)| bytes.len().to_string()))
            .route("/json", post(async |MatrixJson::<Value>(json)| json.to_string()))
            .route("/slow", get(async || tokio::time::sleep(Duration::from_secs(60)).await))
            .route("/panic", get(panicking));
        let bounds = Bounds {
            listener: "test",
            body_bytes: 100,
            timeout: Duration::from_millis(50),
            connections: 1,
            idle: Duration::from_secs(1),
            taken: Duration::from_secs(1),
            life: None,
        };
        finish(router, bounds)
    }

    async fn panicking() -> &'static str {
        panic!("canary")
    }

    async fn call(method: &str, path: &str, body: Body) -> (u16, Value) {
        let request = http::Request::builder().method(method).uri(path).body(body);
        let response = router().oneshot(request.expect("a request")).await.expect("an answer");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 10_000).await.expect("a body");
        assert!(!String::from_utf8_lossy(&body).contains("canary"));
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn whatever_goes_wrong_has_the_shape_of_matrix() {
        let big = || Body::from("x".repeat(101));
        let chunks = || {
            let chunk = Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 101]));
            Body::from_stream(futures_util::stream::iter([chunk]))
        };
        for (method, path, body, status, errcode) in [
            ("GET", "/nowhere", Body::empty(), 404, "M_UNRECOGNIZED"),
            ("GET", "/bytes", Body::empty(), 405, "M_UNRECOGNIZED"),
            ("POST", "/bytes", big(), 413, "M_TOO_LARGE"),
            ("POST", "/bytes", chunks(), 413, "M_TOO_LARGE"),
            ("POST", "/json", chunks(), 413, "M_TOO_LARGE"),
            ("POST", "/json", Body::from("{"), 400, "M_NOT_JSON"),
            ("GET", "/slow", Body::empty(), 504, "M_UNKNOWN"),
            ("GET", "/panic", Body::empty(), 500, "M_UNKNOWN"),
        ] {
            let (answered, json) = call(method, path, body).await;
            assert_eq!((answered, &json["errcode"]), (status, &errcode.into()), "{method} {path}");
            assert!(json["error"].is_string());
        }
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_is_counted() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let _here = metrics::set_default_local_recorder(&recorder);
        for _ in 0..2 {
            assert_eq!(call("GET", "/panic", Body::empty()).await.0, 500);
            assert_eq!(call("POST", "/bytes", Body::from("x")).await.0, 200);
        }
        let counted = recorder.handle().render();
        let panics = "greenshield_handler_panics_total{listener=\"test\"} 2";
        assert!(counted.contains(panics), "{counted}");
    }

    #[tokio::test]
    async fn what_fits_goes_through() {
        assert_eq!(call("POST", "/bytes", Body::from("x".repeat(100))).await, (200, 100.into()));
    }
}
