//! The admin port's listener. It shares memory and file descriptors with payments, so it takes a bounded share of them.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower_service::Service;

use super::current::Current;

/// Connections at once: a browser opens six, a probe, a scrape or a follower of the log one. With the largest bodies that are
/// taken they hold a quarter of a gigabyte. More of them wait in the listen queue, as those of clients do.
const CONNECTIONS_MAX: usize = 128;

/// Whoever says nothing for this long is not an operator.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is used, and how long its last request may take then, which is longer than any request may. Who takes
/// no answers would hold a place for ever otherwise, and with all of them keep probes out; others connect again.
const LIFE: Duration = Duration::from_secs(300);
const LAST_REQUEST: Duration = Duration::from_secs(60);

/// Serves until it is given up.
pub(super) async fn serve(listener: TcpListener, router: Current<Router>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // It is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let _held = place;
            serve_connection(stream, router).await;
        });
    }
}

async fn serve_connection<S>(stream: impl AsyncRead + AsyncWrite + Unpin, service: S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone,
{
    // HTTP/1.1 alone: to tell it from HTTP/2 would mean to wait for the first bytes, without a limit of time.
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    let ended = match timeout(LIFE, &mut connection).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_REQUEST, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = error.to_string(), "an admin connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_no_answer_gives_the_place_back() {
        let router = Router::new().route("/", get(|| async { vec![0; 1 << 20] }));
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let began = Instant::now();
        timeout(2 * LIFE, serve_connection(server, router)).await.expect("it has not ended");
        assert_eq!(began.elapsed(), LIFE + LAST_REQUEST);
    }
}
