//! Connections to one upstream that wait for their next request: last in, first out, closed after a while.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::wire::Carried;

/// Idle connections kept, at most: beyond, they cost more memory than their handshakes save.
const IDLE_MAX: usize = 512;

/// How long a connection may take to become ready again after its response ended.
const READY_MAX: Duration = Duration::from_secs(5);

/// An HTTP/1.1 connection, in the hands of one request at a time. Dropped in mid-request it is reset.
pub(super) struct Connection<B> {
    pub sender: http1::SendRequest<B>,
    pub carried: Arc<Carried>,
    driver: Driver,
}

/// The task that moves a connection's bytes; it ends with whoever holds this.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<B> Connection<B> {
    pub fn new(sender: http1::SendRequest<B>, carried: Arc<Carried>, driver: AbortHandle) -> Connection<B> {
        Connection { sender, carried, driver: Driver(driver) }
    }

    /// Lets the connection live on with its stream, as after a switch of protocols.
    pub fn detach(self) {
        let Connection { driver, .. } = self;
        std::mem::forget(driver);
    }
}

/// Requests at once on an HTTP/2 connection. Below what servers allow (RFC 9113 recommends at least 100), so that no
/// request waits inside the connection after the send rule was checked.
pub(super) const STREAMS_MAX: usize = 64;

/// An HTTP/2 connection, which many requests share.
struct Lane<B> {
    sender: http2::SendRequest<B>,
    places: Arc<Semaphore>,
}

/// A place on an HTTP/2 connection, for one request.
pub(super) struct Place<B> {
    pub sender: http2::SendRequest<B>,
    /// Held until the response has ended.
    pub permit: OwnedSemaphorePermit,
}

impl<B> Lane<B> {
    fn place(&self) -> Option<Place<B>> {
        let permit = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { sender: self.sender.clone(), permit })
    }

    fn is_idle(&self) -> bool {
        self.places.available_permits() == STREAMS_MAX
    }
}

/// The connections of an upstream that take a request.
pub(super) struct Pool<B>(Arc<Shared<B>>);

struct Shared<B> {
    idle: Mutex<Idle<B>>,
    /// HTTP/2 connections, where the upstream negotiated it.
    lanes: Mutex<Vec<Lane<B>>>,
    idle_timeout: Duration,
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
    pub fn new(idle_timeout: Duration) -> Pool<B> {
        Pool(Arc::new(Shared {
            idle: Mutex::new(Idle { connections: Vec::new(), reaper: false }),
            lanes: Mutex::default(),
            idle_timeout,
        }))
    }

    /// The connection that was used last and is still open.
    pub fn take(&self) -> Option<Connection<B>> {
        let oldest = Instant::now().checked_sub(self.0.idle_timeout);
        let mut idle = lock(&self.0.idle);
        while let Some((since, connection)) = idle.connections.pop() {
            if connection.sender.is_ready() && oldest.is_none_or(|oldest| since > oldest) {
                return Some(connection);
            }
        }
        None
    }

    /// Takes a connection back whose response has ended, as soon as it is ready for the next request.
    pub fn give_back(&self, mut connection: Connection<B>) {
        if connection.sender.is_ready() {
            return self.put(connection);
        }
        if connection.sender.is_closed() {
            return;
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

    /// A place on the first HTTP/2 connection that has one.
    pub fn place(&self) -> Option<Place<B>> {
        let mut lanes = lock(&self.0.lanes);
        // After a rush one idle connection is enough.
        let mut spare = false;
        lanes.retain(|lane| !lane.sender.is_closed() && (!lane.is_idle() || !std::mem::replace(&mut spare, true)));
        lanes.iter().find_map(Lane::place)
    }

    /// Shares a new HTTP/2 connection, and takes its first place.
    pub fn share(&self, sender: http2::SendRequest<B>) -> Option<Place<B>> {
        let lane = Lane { sender, places: Arc::new(Semaphore::new(STREAMS_MAX)) };
        let place = lane.place();
        let mut lanes = lock(&self.0.lanes);
        // Where many came at once and each opened its own, one is enough for those who come later.
        if !lanes.iter().any(|lane| lane.places.available_permits() > 0) {
            lanes.push(lane);
        }
        place
    }
}

/// Closes connections that were idle for too long; ends when none is left.
async fn reap<B: Send + 'static>(pool: Pool<B>) {
    loop {
        sleep(pool.0.idle_timeout / 2).await;
        let oldest = Instant::now().checked_sub(pool.0.idle_timeout);
        let mut idle = lock(&pool.0.idle);
        idle.connections
            .retain(|(since, connection)| oldest.is_none_or(|oldest| *since > oldest) && !connection.sender.is_closed());
        if idle.connections.is_empty() {
            idle.reaper = false;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
