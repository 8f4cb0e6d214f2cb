//! The pool of idle connections to one upstream. The connection that was used last is used first,
//! and connections that are idle for too long are closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::entropy::Entropy;
use crate::proxy::outbound::multiplexed::{Http2Connection, STREAMS_MAX, StreamSlot};
use crate::proxy::outbound::wire::WriteTracker;

/// The maximum of idle connections. More would cost more memory than their handshakes save.
const IDLE_MAX: usize = 512;

/// The longest time that a connection may take to become ready after its response ended.
const READY_MAX: Duration = Duration::from_secs(5);

/// An HTTP/1.1 connection, which one request uses at a time. Dropping it during a request resets
/// it.
pub(in crate::proxy) struct Http1Connection<B> {
    pub sender: http1::SendRequest<B>,
    pub tracker: Arc<WriteTracker>,
    driver: DriverTask,
    /// The time from which the connection is too old for another request.
    until: Instant,
}

/// The handle of the task that reads and writes a connection. Dropping the handle aborts the task,
/// unless the task was detached.
struct DriverTask(Option<AbortHandle>);

impl Drop for DriverTask {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl<B> Http1Connection<B> {
    pub fn new(
        sender: http1::SendRequest<B>,
        tracker: Arc<WriteTracker>,
        driver: AbortHandle,
        until: Instant,
    ) -> Http1Connection<B> {
        Http1Connection { sender, tracker, driver: DriverTask(Some(driver)), until }
    }

    /// Returns whether the connection takes no further request: it is too old or closed, or a write
    /// failed.
    fn is_done(&self) -> bool {
        Instant::now() >= self.until || self.tracker.failed() || self.sender.is_closed()
    }

    /// Keeps the connection open without this handle, as after a switch of protocols.
    pub fn detach(mut self) {
        self.driver.0 = None;
    }
}

/// The maximum of HTTP/2 connections in a [`Lane`]. If all of their stream slots are used, a
/// request waits for one.
const HTTP2_CONNECTIONS_MAX: usize = 128;

/// The HTTP/2 connections for one kind of requests, protected ones or all others.
///
/// Protected requests have their own connections. An upstream ends a connection on which too many
/// requests are reset or arrive in tiny pieces. Any client can cause this with requests that pass
/// through, and the outcome of all other requests on that connection would then be uncertain.
pub(in crate::proxy) struct Lane {
    connections: Mutex<Vec<Arc<Http2Connection>>>,
    /// One permit for each of the [`HTTP2_CONNECTIONS_MAX`] connections.
    pub permits: Arc<Semaphore>,
    /// Notified when a stream slot may have become free.
    pub freed: Arc<Notify>,
}

/// The open connections to one upstream. Clones share them.
pub(in crate::proxy) struct Pool<B>(Arc<PoolState<B>>);

struct PoolState<B> {
    idle: Mutex<IdleConnections<B>>,
    /// The HTTP/2 connections of protected requests, and those of all others.
    lanes: [Lane; 2],
    /// Whether the last new connection negotiated HTTP/2.
    negotiated_http2: AtomicBool,
    idle_timeout: Duration,
    age_max: Duration,
    entropy: Entropy,
}

struct IdleConnections<B> {
    /// Each connection with the time at which it became idle.
    connections: Vec<(Instant, Http1Connection<B>)>,
    /// Whether the task that closes idle connections runs.
    reaper: bool,
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Pool<B> {
        Pool(self.0.clone())
    }
}

impl<B: Send + 'static> Pool<B> {
    /// Creates an empty pool. Its connections may be idle for `idle_timeout` and become `age_max`
    /// old.
    pub fn new(idle_timeout: Duration, age_max: Duration, entropy: Entropy) -> Pool<B> {
        Pool(Arc::new(PoolState {
            idle: Mutex::new(IdleConnections { connections: Vec::new(), reaper: false }),
            lanes: [Lane::new(), Lane::new()],
            negotiated_http2: AtomicBool::new(false),
            idle_timeout,
            age_max,
            entropy,
        }))
    }

    /// Returns the time from which a connection that is opened now is too old for another request.
    ///
    /// The limit is the maximum age, minus a random part of up to a quarter. So connections that
    /// were opened together are not replaced together.
    pub fn age_limit(&self) -> Instant {
        let PoolState { age_max, entropy, .. } = &*self.0;
        let earlier = u32::try_from(entropy.next() % 1024).unwrap_or(0);
        let age = age_max.saturating_sub(*age_max / 4 / 1024 * earlier);
        Instant::now() + age
    }

    /// Takes the HTTP/1.1 connection that was used last and is still open.
    pub fn take(&self) -> Option<Http1Connection<B>> {
        let oldest = Instant::now().checked_sub(self.0.idle_timeout);
        let mut idle = lock(&self.0.idle);
        while let Some((since, connection)) = idle.connections.pop() {
            if connection.sender.is_ready()
                && !connection.is_done()
                && oldest.is_none_or(|oldest| since > oldest)
            {
                return Some(connection);
            }
        }
        None
    }

    /// Puts a connection back after its response has ended, as soon as the connection is ready for
    /// the next request.
    pub fn give_back(&self, mut connection: Http1Connection<B>) {
        if connection.is_done() {
            return;
        }
        if connection.sender.is_ready() {
            return self.put(connection);
        }
        let pool = self.clone();
        tokio::spawn(async move {
            if let Ok(Ok(())) = tokio::time::timeout(READY_MAX, connection.sender.ready()).await {
                pool.put(connection);
            }
        });
    }

    fn put(&self, connection: Http1Connection<B>) {
        let mut idle = lock(&self.0.idle);
        if idle.connections.len() >= IDLE_MAX {
            return;
        }
        idle.connections.push((Instant::now(), connection));
        if !std::mem::replace(&mut idle.reaper, true) {
            drop(idle);
            tokio::spawn(reap(self.clone()));
        }
    }

    /// Records whether the last new connection negotiated HTTP/2.
    pub fn note_negotiated(&self, is_http2: bool) {
        self.0.negotiated_http2.store(is_http2, Ordering::Release);
    }

    /// Returns how long a connection may be idle and still take a request.
    pub fn idle_max(&self) -> Duration {
        self.0.idle_timeout
    }

    /// Returns whether new connections are expected to use HTTP/2, so that they need a permit.
    pub fn expects_http2(&self) -> bool {
        self.0.negotiated_http2.load(Ordering::Acquire)
    }

    /// Returns the HTTP/2 connections for protected requests, or those for all others.
    pub fn lane(&self, protected: bool) -> &Lane {
        let [of_protected, of_others] = &self.0.lanes;
        if protected { of_protected } else { of_others }
    }

    /// Adds a new HTTP/2 connection, and takes its first stream slot.
    pub fn share(&self, protected: bool, connection: &Arc<Http2Connection>) -> Option<StreamSlot> {
        let (slot, lane) = (connection.slot(), self.lane(protected));
        let mut all = lock(&lane.connections);
        // If many requests arrive at once, each of them opens a connection. Later requests need
        // only one of these connections.
        let spare: usize = all.iter().map(|connection| connection.free()).sum();
        if spare < STREAMS_MAX && connection.is_counted() {
            all.push(connection.clone());
            // The connection's other slots are free for requests that wait.
            lane.freed.notify_waiters();
            tokio::spawn(end_when_idle(self.clone(), protected, Arc::downgrade(connection)));
        }
        slot
    }
}

impl Lane {
    fn new() -> Lane {
        Lane {
            connections: Mutex::default(),
            permits: Arc::new(Semaphore::new(HTTP2_CONNECTIONS_MAX)),
            freed: Arc::default(),
        }
    }

    /// Takes a stream slot on the first connection that has one. Connections that were idle for
    /// `idle_max` or longer are dropped, because the upstream may be about to close them.
    pub fn slot(&self, idle_max: Duration) -> Option<StreamSlot> {
        let mut all = lock(&self.connections);
        // After a peak, idle connections with about STREAMS_MAX free slots are kept, and the others
        // are dropped.
        let mut spare = 0;
        all.retain(|connection| {
            // A connection that is too old is dropped from the pool. Its last request keeps it open
            // until that request ends.
            let fit =
                !connection.is_old() && connection.idle_for().is_none_or(|idle| idle < idle_max);
            let kept =
                fit && (!connection.is_idle() || (connection.free() > 0 && spare < STREAMS_MAX));
            spare += if connection.is_idle() { connection.free() } else { 0 };
            kept
        });
        // A connection that has just ended or become too old gives no slot. It must be removed, or
        // this loop would not end.
        while let Some(at) = all.iter().position(|connection| connection.free() > 0) {
            match all[at].slot() {
                Some(slot) if !all[at].is_closed() => return Some(slot),
                _ => drop(all.remove(at)),
            }
        }
        None
    }

    /// Returns a permit for one more connection, if one is left.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }
}

/// Drops an HTTP/2 connection after it was idle for too long. This closes the connection.
async fn end_when_idle<B: Send + 'static>(
    pool: Pool<B>,
    protected: bool,
    connection: Weak<Http2Connection>,
) {
    let idle_timeout = pool.0.idle_timeout;
    loop {
        sleep(idle_timeout).await;
        let Some(connection) = connection.upgrade() else { return };
        let mut all = lock(&pool.lane(protected).connections);
        if connection.idle_for().is_some_and(|idle| idle >= idle_timeout) {
            return all.retain(|other| !Arc::ptr_eq(other, &connection));
        }
    }
}

/// Closes connections that were idle for too long. Ends when no idle connection is left.
async fn reap<B: Send + 'static>(pool: Pool<B>) {
    loop {
        sleep(pool.0.idle_timeout / 2).await;
        let oldest = Instant::now().checked_sub(pool.0.idle_timeout);
        let mut idle = lock(&pool.0.idle);
        idle.connections.retain(|(since, connection)| {
            oldest.is_none_or(|oldest| *since > oldest) && !connection.is_done()
        });
        if idle.connections.is_empty() {
            idle.reaper = false;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
