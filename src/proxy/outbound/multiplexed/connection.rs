//! One HTTP/2 connection, its stream slots, and the task that reads and writes it.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::forwarding::BoxError;
use crate::proxy::outbound::failure::HEADER_LIST_MAX;
use crate::proxy::outbound::frame_gate::{FrameGate, GatedWire};

/// The maximum of simultaneous requests on one connection, even if the peer allows more.
pub(in crate::proxy) const STREAMS_MAX: usize = 64;

/// How long a connection may be silent before it gets a ping, and how long the peer may take to
/// answer the ping.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The longest time that an unused connection may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// How much of one answer an upstream may send before somebody reads it, in bytes. The connection's
/// window has room for this amount on every stream. So an unread answer does not delay the others.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;

/// How much of one request body the library holds while the socket does not accept it, in bytes.
const SEND_BUFFER: usize = 64 << 10;

/// An HTTP/2 connection to the upstream. Its task ends when the last reference is dropped.
pub(in crate::proxy) struct Http2Connection {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) gate: Arc<FrameGate>,
    pub(super) slots: Arc<StreamSlots>,
    /// Ends the connection at once, with all of its streams.
    pub(super) abort: CancellationToken,
    /// The permit to be one of the upstream's connections.
    permit: Option<OwnedSemaphorePermit>,
    /// The time from which the connection is too old for another request.
    until: Instant,
    /// Lets the connection close when it is not used any more. It is dropped after `sender`,
    /// because `sender` keeps the connection open.
    _unused: DropGuard,
}

/// The stream slots of a connection.
pub(super) struct StreamSlots {
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the peer. It is 0 until the peer's first SETTINGS arrive.
    limit: AtomicUsize,
    used: AtomicUsize,
    /// When a slot was last given back.
    idle_since: Mutex<Instant>,
    /// Notifies the tasks that wait for the first SETTINGS.
    changed: Notify,
    /// Notifies the tasks that wait for a slot on any connection of the upstream.
    freed: Arc<Notify>,
}

impl StreamSlots {
    fn idle_since(&self) -> MutexGuard<'_, Instant> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire).min(STREAMS_MAX)
    }

    fn set_limit(&self, limit: usize) {
        if self.limit.swap(limit, Ordering::AcqRel) != limit {
            self.changed.notify_waiters();
            self.freed.notify_waiters();
        }
    }
}

/// A stream slot on a connection, for one request. Dropping it frees the slot.
pub(in crate::proxy) struct StreamSlot(pub(super) Arc<Http2Connection>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let slots = &self.0.slots;
        *slots.idle_since() = Instant::now();
        slots.used.fetch_sub(1, Ordering::AcqRel);
        slots.freed.notify_one();
    }
}

impl Http2Connection {
    /// Begins HTTP/2 on a connection, and waits for the peer's first SETTINGS that allow a stream.
    ///
    /// `freed` is notified when a slot may have become free. `permit` is held until the connection
    /// is dropped. The connection takes requests until `until`.
    ///
    /// # Errors
    /// The connection ended before it allowed a stream.
    pub async fn open<T>(
        io: T,
        freed: Arc<Notify>,
        permit: Option<OwnedSemaphorePermit>,
        until: Instant,
    ) -> Result<Arc<Http2Connection>, BoxError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let gate = FrameGate::new();
        let (sender, connection) = h2::client::Builder::new()
            .initial_max_send_streams(0)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_window_size(STREAM_WINDOW)
            .max_header_list_size(HEADER_LIST_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake(GatedWire::new(io, gate.clone()))
            .await?;
        let (limit, used, idle_since) =
            (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Instant::now()));
        let slots =
            Arc::new(StreamSlots { limit, used, idle_since, changed: Notify::new(), freed });
        let (abort, unused) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(drive(connection, gate.clone(), slots.clone(), abort.clone(), unused.clone()));
        let opened = Http2Connection {
            sender,
            gate,
            slots: slots.clone(),
            abort,
            permit,
            until,
            _unused: unused.drop_guard(),
        };
        let opened = Arc::new(opened);
        loop {
            let mut changed = pin!(slots.changed.notified());
            changed.as_mut().enable();
            if opened.is_closed() {
                return Err("it was closed before it allowed a request".into());
            }
            if slots.limit() > 0 {
                return Ok(opened);
            }
            changed.await;
        }
    }

    /// Takes a slot, if one is free and the connection is not too old.
    pub fn slot(self: &Arc<Self>) -> Option<StreamSlot> {
        if self.is_old() {
            return None;
        }
        let StreamSlots { used, .. } = &*self.slots;
        let taken = used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            (used < self.slots.limit()).then_some(used + 1)
        });
        taken.is_ok().then(|| StreamSlot(self.clone()))
    }

    /// Returns whether the connection is too old for another request.
    pub fn is_old(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Returns how many slots are free.
    pub fn free(&self) -> usize {
        self.slots.limit().saturating_sub(self.slots.used.load(Ordering::Acquire))
    }

    /// Returns whether no request uses the connection.
    pub fn is_idle(&self) -> bool {
        self.slots.used.load(Ordering::Acquire) == 0
    }

    /// Returns for how long no request has used the connection, or `None` if a request uses it.
    pub fn idle_for(&self) -> Option<Duration> {
        self.is_idle().then(|| self.slots.idle_since().elapsed())
    }

    /// Returns whether the connection has a permit to be one of the upstream's connections.
    pub fn is_counted(&self) -> bool {
        self.permit.is_some()
    }

    /// Returns whether the connection takes no new request: it ended, or the peer sent GOAWAY.
    pub fn is_closed(&self) -> bool {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        self.abort.is_cancelled() || matches!(ready, Poll::Ready(Err(_)))
    }
}

/// Reads and writes a connection, and sends a ping when the peer is silent.
async fn drive<T>(
    mut connection: Connection<T, Bytes>,
    gate: Arc<FrameGate>,
    slots: Arc<StreamSlots>,
    abort: CancellationToken,
    unused: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = connection.ping_pong();
    let unresponsive = async {
        loop {
            sleep(KEEP_ALIVE).await;
            if gate.take_received() {
                continue;
            }
            let Some(pings) = &mut pings else { return std::future::pending().await };
            match timeout(KEEP_ALIVE, pings.ping(h2::Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return,
            }
        }
    };
    let run = std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        slots.set_limit(connection.max_concurrent_send_streams());
        polled
    });
    tokio::select! {
        biased;
        () = abort.cancelled() => {}
        ended = run => if let Err(error) = ended {
            tracing::debug!(%error, "an upstream connection ended");
        },
        () = unresponsive => tracing::debug!("an upstream connection did not answer a ping"),
        // The last reference was dropped: the connection closes by itself when it is polled.
        () = unused.cancelled() => drop(timeout(CLOSE_MAX, &mut connection).await),
    }
    drop(connection);
    slots.set_limit(0);
    slots.changed.notify_waiters();
    slots.freed.notify_waiters();
}
