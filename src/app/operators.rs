//! The admin port's listener. It uses the same memory and file descriptors as payments, so its
//! share is limited.
//!
//! Danger: if clients that open connections and send nothing block the health checks, an
//! orchestrator ends a healthy process. So when all permits are taken, the connection that has been
//! without a request for the longest time is closed.

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

use super::swappable::SwappableService;
use crate::admin::with_guard;

/// The maximum of connections: one for each request that the admin port processes at once, and some
/// for health checks.
const CONNECTIONS_MAX: usize = 160;

/// The gateway disconnects a client that sends no request for this long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest life of a connection, and then also the longest duration of its last request, which
/// is longer than the limit of any request. Without this, clients that read no responses could hold
/// all permits forever and block health checks. Other clients reconnect.
const LIFE: Duration = Duration::from_secs(300);
const LAST_REQUEST: Duration = Duration::from_secs(60);

/// Accepts connections until the task is aborted.
pub(super) async fn serve(listener: TcpListener, router: SwappableService<Router>) {
    let permits = ConnectionPermits::new(CONNECTIONS_MAX);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (router, permit) = (router.clone(), permits.enter().await);
        tokio::spawn(async move { serve_connection(stream, router, permit).await });
    }
}

/// The permits of connections, and the connections that have no active request.
struct ConnectionPermits {
    free: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Connections without an active request, in the order in which they began to wait for one.
#[derive(Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

/// The permit of a connection.
struct ConnectionPermit {
    waiting: Arc<Mutex<Waiting>>,
    /// The connection's number in `waiting`.
    number: Mutex<u64>,
    /// Cancelled when the connection has to be closed.
    evicted: CancellationToken,
    _held: OwnedSemaphorePermit,
}

/// Guard for an active request. When it is dropped, the connection waits for a request again.
struct RequestGuard(Arc<ConnectionPermit>);

impl ConnectionPermits {
    fn new(count: usize) -> ConnectionPermits {
        ConnectionPermits { free: Arc::new(Semaphore::new(count)), waiting: Arc::default() }
    }

    /// Returns a permit for a new connection. If no permit is free, closes the connection that has
    /// waited for the longest time.
    async fn enter(&self) -> Arc<ConnectionPermit> {
        const RETRY: Duration = Duration::from_millis(20);
        let held = loop {
            if let Ok(held) = self.free.clone().try_acquire_owned() {
                break held;
            }
            if let Some((_, oldest)) = lock(&self.waiting).connections.pop_first() {
                oldest.cancel();
            }
            // If all connections have an active request, a permit becomes free when one of these
            // requests ends.
            if let Ok(Ok(held)) = timeout(RETRY, self.free.clone().acquire_owned()).await {
                break held;
            }
        };
        let evicted = CancellationToken::new();
        let number = lock(&self.waiting).add(evicted.clone());
        Arc::new(ConnectionPermit {
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

impl ConnectionPermit {
    /// Marks a request as active. Until it is answered, its connection is not closed in favour of a
    /// new one.
    fn begin(self: &Arc<ConnectionPermit>) -> RequestGuard {
        let number = *lock(&self.number);
        lock(&self.waiting).connections.remove(&number);
        RequestGuard(self.clone())
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut number = lock(&self.0.number);
        *number = lock(&self.0.waiting).add(self.0.evicted.clone());
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let number = *lock(&self.number);
        lock(&self.waiting).connections.remove(&number);
    }
}

/// Locks a mutex, even after a panic of another holder. The map is still consistent then, because
/// every change is a single insert or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve_connection<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: S,
    permit: Arc<ConnectionPermit>,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone,
{
    let evicted = permit.evicted.clone();
    let service = service_fn(move |request| {
        let (mut service, guard) = (service.clone(), permit.begin());
        async move {
            let answer = service.call(request).await?;
            // The body owns the guard, because the connection must not be closed while a response
            // is being sent.
            Ok::<_, Infallible>(answer.map(|body| with_guard(body, guard)))
        }
    });
    // HTTP/1.1 only, because the detection of HTTP/2 waits for the first bytes without a time
    // limit.
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
    async fn a_client_that_takes_no_answer_gives_the_permit_back() {
        let router = Router::new().route("/", get(|| async { vec![0; 1 << 20] }));
        let (mut client, server) = duplex(1024);
        client.write_all(REQUEST).await.unwrap();
        let permit = ConnectionPermits::new(1).enter().await;
        let began = Instant::now();
        timeout(2 * LIFE, serve_connection(server, router, permit))
            .await
            .expect("it has not ended");
        assert_eq!(began.elapsed(), LIFE + LAST_REQUEST);
    }

    /// Serves a connection as soon as a permit is free.
    async fn connect(permits: &ConnectionPermits, router: &Router) -> DuplexStream {
        let (client, server) = duplex(1024);
        let (router, permit) = (router.clone(), permits.enter().await);
        tokio::spawn(async move { serve_connection(server, router, permit).await });
        client
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_waits_for_longest_makes_room_and_one_with_a_request_does_not() {
        let router = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/slow", get(|| async { sleep(Duration::from_secs(5)).await }));
        let permits = ConnectionPermits::new(3);
        let began = Instant::now();
        let mut working = connect(&permits, &router).await;
        working.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut half = connect(&permits, &router).await;
        half.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut answered = connect(&permits, &router).await;
        answered.write_all(REQUEST).await.unwrap();
        let mut text = [0; 12];
        answered.read_exact(&mut text).await.unwrap();

        let mut next = connect(&permits, &router).await;
        assert_eq!(half.read(&mut text).await.unwrap(), 0, "half a request made room");
        next.write_all(REQUEST).await.unwrap();
        next.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"HTTP/1.1 200");
        assert!(began.elapsed() < Duration::from_secs(1));
        working.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"HTTP/1.1 200", "the active request was answered");
    }
}
