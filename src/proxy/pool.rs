//! Connections to one upstream that wait for their next request: last in, first out, closed after a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::multiplexed::{Multiplexed, STREAMS_MAX, StreamSlot};
use super::wire::Carried;
use crate::entropy::Entropy;

/// Idle connections kept, at most: beyond, they cost more memory than their handshakes save.
const IDLE_MAX: usize = 512;

/// How long a connection may take to become ready again after its response ended.
const READY_MAX: Duration = Duration::from_secs(5);

/// An HTTP/1.1 connection, in the hands of one request at a time. Dropped in mid-request it is reset.
pub(super) struct Connection<B> {
    pub sender: http1::SendRequest<B>,
    pub carried: Arc<Carried>,
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
    pub fn new(sender: http1::SendRequest<B>, carried: Arc<Carried>, driver: AbortHandle, until: Instant) -> Connection<B> {
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

/// HTTP/2 connections to one upstream, at most. Requests beyond their stream slots wait for one.
const MULTIPLEXED_MAX: usize = 256;

/// The connections of an upstream that take a request.
pub(super) struct Pool<B>(Arc<Shared<B>>);

struct Shared<B> {
    idle: Mutex<Idle<B>>,
    /// HTTP/2 connections, where the upstream negotiated it.
    multiplexed: Mutex<Vec<Arc<Multiplexed>>>,
    /// Permits for [`MULTIPLEXED_MAX`] of them.
    permits: Arc<Semaphore>,
    /// Whether the last new connection was one of them.
    negotiated: AtomicBool,
    /// Notified when a stream slot may have become free.
    freed: Arc<Notify>,
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
            multiplexed: Mutex::default(),
            permits: Arc::new(Semaphore::new(MULTIPLEXED_MAX)),
            negotiated: AtomicBool::new(false),
            freed: Arc::default(),
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
            if connection.sender.is_ready() && !connection.is_done() && oldest.is_none_or(|oldest| since > oldest) {
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

    /// A stream slot on the first HTTP/2 connection that has one.
    pub fn slot(&self) -> Option<StreamSlot> {
        let mut all = lock(&self.0.multiplexed);
        // After a rush, idle connections are kept for as many requests as one connection takes.
        let mut spare = 0;
        all.retain(|connection| {
            // One that is too old ends with the last request on it, which keeps it until then.
            let kept = !connection.is_old() && (!connection.is_idle() || (connection.free() > 0 && spare < STREAMS_MAX));
            spare += if connection.is_idle() { connection.free() } else { 0 };
            kept
        });
        loop {
            let at = all.iter().position(|connection| connection.free() > 0)?;
            if all[at].is_closed() {
                all.remove(at);
            } else if let Some(slot) = all[at].slot() {
                return Some(slot);
            }
        }
    }

    /// Adds a new HTTP/2 connection, and takes its first slot.
    pub fn share(&self, connection: &Arc<Multiplexed>) -> Option<StreamSlot> {
        let slot = connection.slot();
        let mut all = lock(&self.0.multiplexed);
        // Where many requests came at once and each opened its own connection, one is enough for later requests.
        let spare: usize = all.iter().map(|connection| connection.free()).sum();
        if spare < STREAMS_MAX && connection.is_counted() {
            all.push(connection.clone());
            // The slots that it has left.
            self.0.freed.notify_waiters();
        }
        slot
    }

    /// Notes what the last new connection negotiated.
    pub fn note_negotiated(&self, multiplexed: bool) {
        self.0.negotiated.store(multiplexed, Ordering::Release);
    }

    /// Whether new connections are expected to speak HTTP/2, so that they need a permit.
    pub fn expects_multiplexed(&self) -> bool {
        self.0.negotiated.load(Ordering::Acquire)
    }

    /// The permits of HTTP/2 connections.
    pub fn permits(&self) -> &Arc<Semaphore> {
        &self.0.permits
    }

    /// A permit for one more HTTP/2 connection, where one is left.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.0.permits.clone().try_acquire_owned().ok()
    }

    /// Notified when a stream slot may have become free.
    pub fn freed(&self) -> &Arc<Notify> {
        &self.0.freed
    }
}

/// Closes connections that were idle for too long; ends when none is left.
async fn reap<B: Send + 'static>(pool: Pool<B>) {
    loop {
        sleep(pool.0.idle_timeout / 2).await;
        let oldest = Instant::now().checked_sub(pool.0.idle_timeout);
        let mut idle = lock(&pool.0.idle);
        idle.connections.retain(|(since, connection)| oldest.is_none_or(|oldest| *since > oldest) && !connection.is_done());
        if idle.connections.is_empty() {
            idle.reaper = false;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
