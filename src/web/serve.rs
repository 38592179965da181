//! Running a listener.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::kit::Bounds;

/// How long requests that are under way at the end are waited for.
const GRACE: Duration = Duration::from_secs(10);
/// How large a request's head may be: every connection can make us keep so much.
const HEAD_BYTES: usize = 64 * 1024;
/// How long to wait when no connection can be taken, as when the process has no file descriptors left.
const BREATHER: Duration = Duration::from_millis(100);

/// Answers what comes to `listener` with `router` until `stop`; then takes nothing new, and waits a
/// bounded time for what is under way.
///
/// A client has `bounds.idle` for each request's head, so one that trickles or says nothing is let go;
/// beyond `bounds.connections`, clients wait in the kernel's queue for one that goes. Each listener has
/// its own bounds: whatever strangers do on one, the others have connections left.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(bounds.connections));
    let mut connections = JoinSet::new();
    while let Some(Ok(permit)) = stop.run_until_cancelled(Arc::clone(&free).acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        match accepted {
            Ok((stream, peer)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, peer, router, bounds.idle, stop).await;
                    drop(permit);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, listener = bounds.listener, "cannot take a connection");
                tokio::time::sleep(BREATHER).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        warn!("requests were still under way after {} seconds and are dropped", GRACE.as_secs());
    }
}

/// The client went before it was taken: nothing is wrong with the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    idle: Duration,
    stop: CancellationToken,
) {
    let service = router.map_request(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, routing::get};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BOUNDS: Bounds = Bounds {
        listener: "test",
        body_bytes: 100,
        timeout: Duration::from_secs(5),
        connections: 2,
        idle: Duration::from_millis(200),
    };

    #[tokio::test]
    async fn a_listener_answers_with_a_length_and_stops_when_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(async || Json(serde_json::json!({}))));

        let client = async {
            let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connects");
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("writes");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("reads");
            stop.cancel();
            answer
        };
        let ((), answer) = tokio::join!(serve(listener, router, BOUNDS, stop.clone()), client);

        assert!(answer.to_lowercase().contains("content-length: 2\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn who_says_nothing_is_let_go_and_makes_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(async || "here"));

        let client = async {
            let mut idle = Vec::new();
            for _ in 0..BOUNDS.connections {
                let mut stream = TcpStream::connect(addr).await.expect("connects");
                stream.write_all(b"GET / HTTP/1.1\r\nX-A: ").await.expect("writes");
                idle.push(stream);
            }
            let mut stream = TcpStream::connect(addr).await.expect("connects");
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("writes");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("reads");
            stop.cancel();
            answer
        };
        let ((), answer) = tokio::join!(serve(listener, router, BOUNDS, stop.clone()), client);
        assert!(answer.ends_with("here"), "{answer}");
    }
}
