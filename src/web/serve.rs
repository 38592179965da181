//! Running a listener.

use std::{io, net::SocketAddr, time::Duration};

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long requests that are under way at the end are waited for.
const GRACE: Duration = Duration::from_secs(10);

/// Answers what comes to `listener` with `router` until `stop`; then takes nothing new, and waits a
/// bounded time for what is under way.
///
/// # Errors
///
/// If the listener itself fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result,
        () = too_late => {
            warn!("requests were still under way after {} seconds and are dropped", GRACE.as_secs());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, routing::get};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

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
        let (served, answer) = tokio::join!(serve(listener, router, stop.clone()), client);

        served.expect("stops");
        assert!(answer.to_lowercase().contains("content-length: 2\r\n"), "{answer}");
    }
}
