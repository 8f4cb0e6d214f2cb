//! The admin port's listener. It shares memory and file descriptors with payments, so it takes a bounded share of them.
//!
//! Danger: whoever opens connections and sends nothing must not keep probes out, or an orchestrator ends a healthy process. So
//! when all places are taken, the connection that has been without a request for longest makes room.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::current::Current;
use crate::admin::with_guard;

/// Connections at once: as many as the admin port works on requests other than probes, and some for probes.
const CONNECTIONS_MAX: usize = 160;

/// Whoever says nothing for this long is not an operator.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is used, and how long its last request may take then, which is longer than any request may. Who takes
/// no answers would hold a place for ever otherwise, and with all of them keep probes out; others connect again.
const LIFE: Duration = Duration::from_secs(300);
const LAST_REQUEST: Duration = Duration::from_secs(60);

/// Serves until it is given up.
pub(super) async fn serve(listener: TcpListener, router: Current<Router>) {
    let places = Permits::new(CONNECTIONS_MAX);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (router, place) = (router.clone(), places.enter().await);
        tokio::spawn(async move { serve_connection(stream, router, place).await });
    }
}

/// The permits of connections, and which of those have no request under way.
struct Permits {
    free: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Connections without a request under way, in the order in which they began to wait for one.
#[derive(Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

/// A connection's permit.
struct Permit {
    waiting: Arc<Mutex<Waiting>>,
    /// Under which number it waits.
    number: Mutex<u64>,
    /// Set when the connection has to make room.
    evicted: CancellationToken,
    _held: OwnedSemaphorePermit,
}

/// A request under way. The connection waits again when this is dropped.
struct RequestUnderWay(Arc<Permit>);

impl Permits {
    fn new(count: usize) -> Permits {
        Permits { free: Arc::new(Semaphore::new(count)), waiting: Arc::default() }
    }

    /// Takes a permit for a new connection, if need be that of the connection that has waited for longest.
    async fn enter(&self) -> Arc<Permit> {
        const LOOK: Duration = Duration::from_millis(20);
        let held = loop {
            if let Ok(held) = self.free.clone().try_acquire_owned() {
                break held;
            }
            if let Some((_, oldest)) = lock(&self.waiting).connections.pop_first() {
                oldest.cancel();
            }
            // Where all have a request under way, one of them will wait again or end.
            if let Ok(Ok(held)) = timeout(LOOK, self.free.clone().acquire_owned()).await {
                break held;
            }
        };
        let evicted = CancellationToken::new();
        let number = lock(&self.waiting).add(evicted.clone());
        Arc::new(Permit {
            waiting: self.waiting.clone(),
            number: Mutex::new(number),
            evicted,
            _held: held,
        })
    }
}

impl Waiting {
    fn add(&mut self, evicted: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        self.connections.insert(number, evicted);
        number
    }
}

impl Permit {
    /// A request begins: until it is answered, the connection makes no room for others.
    fn begin(self: &Arc<Permit>) -> RequestUnderWay {
        let number = *lock(&self.number);
        lock(&self.waiting).connections.remove(&number);
        RequestUnderWay(self.clone())
    }
}

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        let mut number = lock(&self.0.number);
        *number = lock(&self.0.waiting).add(self.0.evicted.clone());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let number = *lock(&self.number);
        lock(&self.waiting).connections.remove(&number);
    }
}

/// A panic elsewhere leaves the map whole: every change is a single insert or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve_connection<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: S,
    place: Arc<Permit>,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone,
{
    let evicted = place.evicted.clone();
    let service = service_fn(move |request| {
        let (mut service, under_way) = (service.clone(), place.begin());
        async move {
            let answer = service.call(request).await?;
            // The body owns it: an answer that is still being made is no time to leave.
            Ok::<_, Infallible>(answer.map(|body| with_guard(body, under_way)))
        }
    });
    // HTTP/1.1 alone: to tell it from HTTP/2 would mean to wait for the first bytes, without a limit of time.
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let served = async {
        match timeout(LIFE, &mut connection).await {
            Ok(ended) => ended,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                timeout(LAST_REQUEST, connection).await.unwrap_or(Ok(()))
            }
        }
    };
    let ended = tokio::select! {
        biased;
        ended = served => ended,
        () = evicted.cancelled() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(error = error.to_string(), "an admin connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn who_takes_no_answer_gives_the_place_back() {
        let router = Router::new().route("/", get(|| async { vec![0; 1 << 20] }));
        let (mut client, server) = duplex(1024);
        client.write_all(REQUEST).await.unwrap();
        let place = Permits::new(1).enter().await;
        let began = Instant::now();
        timeout(2 * LIFE, serve_connection(server, router, place)).await.expect("it has not ended");
        assert_eq!(began.elapsed(), LIFE + LAST_REQUEST);
    }

    /// Serves a connection in a place, as soon as there is one.
    async fn connect(places: &Permits, router: &Router) -> DuplexStream {
        let (client, server) = duplex(1024);
        let (router, place) = (router.clone(), places.enter().await);
        tokio::spawn(async move { serve_connection(server, router, place).await });
        client
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_waits_for_longest_makes_room_and_one_with_a_request_does_not() {
        let router = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/slow", get(|| async { sleep(Duration::from_secs(5)).await }));
        let places = Permits::new(3);
        let began = Instant::now();
        let mut working = connect(&places, &router).await;
        working.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut half = connect(&places, &router).await;
        half.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut answered = connect(&places, &router).await;
        answered.write_all(REQUEST).await.unwrap();
        let mut text = [0; 12];
        answered.read_exact(&mut text).await.unwrap();

        let mut next = connect(&places, &router).await;
        assert_eq!(half.read(&mut text).await.unwrap(), 0, "half a request made room");
        next.write_all(REQUEST).await.unwrap();
        next.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"HTTP/1.1 200");
        assert!(began.elapsed() < Duration::from_secs(1));
        working.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"HTTP/1.1 200", "what was under way was answered");
    }
}
