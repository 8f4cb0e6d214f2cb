//! Connections to one upstream that wait for their next request: last in, first out, closed after a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::entropy::Entropy;
use crate::proxy::outbound::multiplexed::{Multiplexed, STREAMS_MAX, StreamSlot};
use crate::proxy::outbound::wire::WriteTracker;

/// Idle connections kept, at most: beyond, they cost more memory than their handshakes save.
const IDLE_MAX: usize = 512;

/// How long a connection may take to become ready again after its response ended.
const READY_MAX: Duration = Duration::from_secs(5);

/// An HTTP/1.1 connection, in the hands of one request at a time. Dropped in mid-request it is reset.
pub(in crate::proxy) struct Connection<B> {
    pub sender: http1::SendRequest<B>,
    pub carried: Arc<WriteTracker>,
    driver: Driver,
    /// When it becomes too old for another request.
    until: Instant,
}

/// The task that moves a connection's bytes; it ends with whoever holds this, unless it was let go.
struct Driver(Option<AbortHandle>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl<B> Connection<B> {
    pub fn new(
        sender: http1::SendRequest<B>,
        carried: Arc<WriteTracker>,
        driver: AbortHandle,
        until: Instant,
    ) -> Connection<B> {
        Connection { sender, carried, driver: Driver(Some(driver)), until }
    }

    /// Whether it takes no further request: it is too old, or a write failed.
    fn is_done(&self) -> bool {
        Instant::now() >= self.until || self.carried.failed() || self.sender.is_closed()
    }

    /// Lets the connection live on with its stream, as after a switch of protocols.
    pub fn detach(mut self) {
        self.driver.0 = None;
    }
}

/// HTTP/2 connections to one upstream, at most, for protected requests, and as many for all others. Requests beyond their
/// stream slots wait for one.
const MULTIPLEXED_MAX: usize = 128;

/// HTTP/2 connections that carry one kind of requests. Protected requests have connections of their own: upstreams end a
/// connection on which too many requests are reset or come in tiny pieces, which any client can do to requests that pass through,
/// and then nobody knows what became of the others on it.
pub(in crate::proxy) struct Lane {
    connections: Mutex<Vec<Arc<Multiplexed>>>,
    /// Permits for [`MULTIPLEXED_MAX`] of them.
    pub permits: Arc<Semaphore>,
    /// Notified when a stream slot may have become free.
    pub freed: Arc<Notify>,
}

/// The connections of an upstream that take a request.
pub(in crate::proxy) struct Pool<B>(Arc<Shared<B>>);

struct Shared<B> {
    idle: Mutex<Idle<B>>,
    /// HTTP/2 connections, where the upstream speaks it: those of protected requests, and of all others.
    lanes: [Lane; 2],
    /// Whether the last new connection was one of them.
    negotiated: AtomicBool,
    idle_timeout: Duration,
    age_max: Duration,
    entropy: Entropy,
}

struct Idle<B> {
    connections: Vec<(Instant, Connection<B>)>,
    reaper: bool,
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Pool<B> {
        Pool(self.0.clone())
    }
}

impl<B: Send + 'static> Pool<B> {
    /// Of an upstream whose connections may be idle, and old, for so long.
    pub fn new(idle_timeout: Duration, age_max: Duration, entropy: Entropy) -> Pool<B> {
        Pool(Arc::new(Shared {
            idle: Mutex::new(Idle { connections: Vec::new(), reaper: false }),
            lanes: [Lane::new(), Lane::new()],
            negotiated: AtomicBool::new(false),
            idle_timeout,
            age_max,
            entropy,
        }))
    }

    /// When a connection that is opened now becomes too old for another request: after the longest age, or up to a quarter of it
    /// earlier, so that what was opened at once is not replaced at once.
    pub fn age_limit(&self) -> Instant {
        let Shared { age_max, entropy, .. } = &*self.0;
        let earlier = u32::try_from(entropy.next() % 1024).unwrap_or(0);
        let age = age_max.saturating_sub(*age_max / 4 / 1024 * earlier);
        Instant::now() + age
    }

    /// The connection that was used last and is still open.
    pub fn take(&self) -> Option<Connection<B>> {
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

    /// Takes a connection back whose response has ended, as soon as it is ready for the next request.
    pub fn give_back(&self, mut connection: Connection<B>) {
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

    fn put(&self, connection: Connection<B>) {
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

    /// Notes what the last new connection negotiated.
    pub fn note_negotiated(&self, multiplexed: bool) {
        self.0.negotiated.store(multiplexed, Ordering::Release);
    }

    /// How long a connection may be idle and still take a request.
    pub fn idle_max(&self) -> Duration {
        self.0.idle_timeout
    }

    /// Whether new connections are expected to speak HTTP/2, so that they need a permit.
    pub fn expects_multiplexed(&self) -> bool {
        self.0.negotiated.load(Ordering::Acquire)
    }

    /// The HTTP/2 connections of protected requests, or of all others.
    pub fn lane(&self, protected: bool) -> &Lane {
        let [of_protected, of_others] = &self.0.lanes;
        if protected { of_protected } else { of_others }
    }

    /// Adds a new HTTP/2 connection, and takes its first slot.
    pub fn share(&self, protected: bool, connection: &Arc<Multiplexed>) -> Option<StreamSlot> {
        let (slot, lane) = (connection.slot(), self.lane(protected));
        let mut all = lock(&lane.connections);
        // Where many requests came at once and each opened its own connection, one is enough for later requests.
        let spare: usize = all.iter().map(|connection| connection.free()).sum();
        if spare < STREAMS_MAX && connection.is_counted() {
            all.push(connection.clone());
            // The slots that it has left.
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
            permits: Arc::new(Semaphore::new(MULTIPLEXED_MAX)),
            freed: Arc::default(),
        }
    }

    /// A stream slot on the first connection that has one, and was not idle for longer than `idle_max`: an upstream may be about
    /// to close that.
    pub fn slot(&self, idle_max: Duration) -> Option<StreamSlot> {
        let mut all = lock(&self.connections);
        // After a rush, idle connections are kept for as many requests as one connection takes.
        let mut spare = 0;
        all.retain(|connection| {
            // One that is too old ends with the last request on it, which keeps it until then.
            let fit =
                !connection.is_old() && connection.idle_for().is_none_or(|idle| idle < idle_max);
            let kept =
                fit && (!connection.is_idle() || (connection.free() > 0 && spare < STREAMS_MAX));
            spare += if connection.is_idle() { connection.free() } else { 0 };
            kept
        });
        // A connection that gives none, because it has just ended or become too old, must not be asked for ever.
        while let Some(at) = all.iter().position(|connection| connection.free() > 0) {
            match all[at].slot() {
                Some(slot) if !all[at].is_closed() => return Some(slot),
                _ => drop(all.remove(at)),
            }
        }
        None
    }

    /// A permit for one more connection, where one is left.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }
}

/// Drops an HTTP/2 connection when it was idle for too long, which closes it.
async fn end_when_idle<B: Send + 'static>(
    pool: Pool<B>,
    protected: bool,
    connection: Weak<Multiplexed>,
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

/// Closes connections that were idle for too long; ends when none is left.
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
