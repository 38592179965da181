//! Running a listener.

use std::{
    io,
    net::IpAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, response::Response};
use http::{HeaderValue, header};
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

use super::{client_addr::Origin, kit::Bounds, peers::Peers, taken::Taken};

/// How long requests that are under way at the end are waited for.
const GRACE: Duration = Duration::from_secs(10);
/// How large a request's head may be: every connection can make us keep so much.
const HEAD_BYTES: usize = 64 * 1024;
/// How long to wait when no connection can be taken, as when the process has no file descriptors left.
const BREATHER: Duration = Duration::from_millis(100);
/// That somebody has too many connections is told no more often than this.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Answers what comes to `listener` with `router` until `stop`; then takes nothing new, and waits a
/// bounded time for what is under way.
///
/// A client has `bounds.idle` for each request's head, so one that trickles or says nothing is let go;
/// `bounds.taken` to read each answer, so one that reads nothing goes too; and however busy it is,
/// `bounds.life` ends a connection between two requests, never within one. Beyond `bounds.connections`,
/// clients wait in the kernel's queue for one that goes; what is more than `peers` gives one of them is
/// closed. Each listener has its own bounds: whatever strangers do on one, the others have connections
/// left.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    peers: Peers,
    stop: CancellationToken,
) {
    let free = Arc::new(Semaphore::new(bounds.connections));
    let mut connections = JoinSet::new();
    let mut told = None;
    while let Some(Ok(permit)) = stop.run_until_cancelled(Arc::clone(&free).acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = peers.enter(peer.ip()) else {
                    refused(bounds.listener, peer.ip(), &mut told);
                    continue;
                };
                let origin = Origin { peer: peer.ip(), peers: peers.clone() };
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, origin, router, bounds, stop).await;
                    drop((place, permit));
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

fn refused(listener: &'static str, peer: IpAddr, told: &mut Option<Instant>) {
    metrics::counter!("greenshield_connections_refused_total", "listener" => listener).increment(1);
    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
        *told = Some(Instant::now());
        warn!(
            listener,
            %peer,
            "a peer has too many connections: if it is your proxy, add it to `public.trusted_proxies`"
        );
    }
}

async fn connection(
    stream: TcpStream,
    origin: Origin,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let began = Instant::now();
    let service = router
        .map_request(move |request: http::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(origin.clone());
            request
        })
        .map_response(move |mut response: Response| {
            // Told in an answer: the client never sends one more request into a connection that goes.
            if bounds.life.is_some_and(|life| began.elapsed() >= life) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.idle)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(
            TokioIo::new(Taken::new(stream, bounds.taken)),
            TowerToHyperService::new(service),
        );
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
    use std::net::SocketAddr;

    use axum::{Json, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
    };

    use super::*;

    /// None that a test meets: each says itself which one it is about.
    const BOUNDS: Bounds = Bounds {
        listener: "test",
        body_bytes: 100,
        timeout: Duration::from_secs(5),
        connections: 2,
        idle: Duration::from_secs(60),
        taken: Duration::from_secs(60),
        life: None,
    };
    /// For a bound that is to be met.
    const SHORT: Duration = Duration::from_millis(200);

    /// Runs `client` against a listener with these bounds, on which a peer that is no proxy has `most`
    /// connections.
    async fn with<T>(bounds: Bounds, most: usize, client: impl AsyncFnOnce(SocketAddr) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let router = Router::new()
            .route("/", get(async || "here"))
            .route("/json", get(async || Json(serde_json::json!({}))))
            .route("/large", get(async || "x".repeat(1 << 20)));
        let client = async {
            let came = client(addr).await;
            stop.cancel();
            came
        };
        let peers = Peers::new(&[], most);
        tokio::join!(serve(listener, router, bounds, peers, stop.clone()), client).1
    }

    async fn say(addr: SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        stream
    }

    async fn ask(addr: SocketAddr, request: &str) -> String {
        let mut answer = String::new();
        say(addr, request).await.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    #[tokio::test]
    async fn a_listener_answers_with_a_length_and_stops_when_told() {
        let answer =
            with(BOUNDS, 2, async |addr| ask(addr, "GET /json HTTP/1.0\r\n\r\n").await).await;
        assert!(answer.to_lowercase().contains("content-length: 2\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn who_says_nothing_is_let_go_and_makes_room() {
        let answer = with(Bounds { idle: SHORT, ..BOUNDS }, 3, async |addr| {
            let mut idle = Vec::new();
            for _ in 0..BOUNDS.connections {
                idle.push(say(addr, "GET / HTTP/1.1\r\nX-A: ").await);
            }
            ask(addr, "GET / HTTP/1.0\r\n\r\n").await
        })
        .await;
        assert!(answer.ends_with("here"), "{answer}");
    }

    /// Reads a little all the time, as long as there is anything.
    async fn sips(stream: &mut TcpStream) {
        let (mut sip, mut every) = ([0; 64], tokio::time::interval(SHORT / 20));
        while stream.read(&mut sip).await.is_ok_and(|read| read > 0) {
            every.tick().await;
        }
        std::future::pending::<()>().await;
    }

    /// Some read nothing at all, some a little all the time.
    #[tokio::test]
    async fn who_does_not_read_is_let_go_and_makes_room() {
        let answer = with(Bounds { taken: SHORT, ..BOUNDS }, 3, async |addr| {
            let mut deaf = Vec::new();
            for _ in 0..BOUNDS.connections {
                let socket = TcpSocket::new_v4().expect("a socket");
                socket.set_recv_buffer_size(2048).expect("a small buffer");
                let mut stream = socket.connect(addr).await.expect("connects");
                let many = "GET /large HTTP/1.1\r\n\r\n".repeat(20);
                stream.write_all(many.as_bytes()).await.expect("writes");
                deaf.push(stream);
            }
            let mut slow = deaf.pop().expect("one of them");
            tokio::select! {
                answer = async {
                    // The one's place, and then the other's: both are gone.
                    let _first = say(addr, "GET / HTTP/1.1\r\nX-A: ").await;
                    ask(addr, "GET / HTTP/1.0\r\n\r\n").await
                } => answer,
                () = sips(&mut slow) => unreachable!(),
            }
        })
        .await;
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test]
    async fn an_old_connection_ends_with_an_answer_and_never_within_one() {
        // The last one is of a version that ends the connection by itself.
        let four = "GET /large HTTP/1.1\r\n\r\n".repeat(3) + "GET / HTTP/1.0\r\n\r\n";
        let young = Bounds { life: Some(Duration::from_secs(60)), ..BOUNDS };
        let old = Bounds { life: Some(Duration::ZERO), ..BOUNDS };
        for (bounds, answers) in [(young, 3), (old, 1)] {
            let answer = with(bounds, 2, async |addr| ask(addr, &four).await).await;
            let heads = answer.matches("HTTP/1.1 200 OK").count();
            let (bytes, ends) = (answer.matches('x').count(), answer.contains("connection: close"));
            assert!(bytes >= answers << 20, "{bytes} bytes in {heads} answers");
            assert_eq!((heads, ends), (answers, answers == 1));
            assert_eq!(answer.ends_with("here"), answers == 3);
        }
    }

    #[tokio::test]
    async fn one_peer_does_not_get_all_connections() {
        with(Bounds { connections: 10, ..BOUNDS }, 2, async |addr| {
            let waiting = "GET / HTTP/1.1\r\nX-A: ";
            let mut held = vec![say(addr, waiting).await, say(addr, waiting).await];
            let mut refused = TcpStream::connect(addr).await.expect("the kernel takes it");
            let answer = refused.read(&mut [0]).await;
            assert!(answer.as_ref().map_or(true, |read| *read == 0), "{answer:?}");

            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind("127.0.0.2:0".parse().expect("an address")).expect("binds");
            let mut other = socket.connect(addr).await.expect("connects");
            other.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("writes");
            let mut answer = String::new();
            other.read_to_string(&mut answer).await.expect("reads");
            assert!(answer.ends_with("here"), "another peer has its own: {answer}");
            held.clear();
        })
        .await;
    }
}
