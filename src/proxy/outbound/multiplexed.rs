//! HTTP/2 connections to an upstream, each shared by as many requests as both sides allow.
//!
//! Danger: the HTTP/2 library queues requests beyond the peer's SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, section
//! 5.1.2), and sends them even where they were cancelled meanwhile. So no request is handed to it without a stream
//! slot, and a [`FrameGate`] checks what it writes.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::forwarding::{BoxError, ForwardError};
use crate::gate::{Payload, SendRule};
use crate::proxy::outbound::failure::{self, HEADER_LIST_MAX};
use crate::proxy::outbound::frame_gate::{FrameGate, GatedWire};

#[cfg(test)]
mod tests;

/// Requests at once on one connection, at most, also where the peer allows more.
pub(in crate::proxy) const STREAMS_MAX: usize = 64;

/// Between two signs of life that a connection is asked for, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long a connection that is not used any more may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What an upstream may send of one answer before somebody takes it, in bytes. The connection's window has room for all
/// of them, so that an answer that nobody takes does not hold up the others.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;

/// Bytes of one request body that the library holds while the socket does not take them.
const SEND_BUFFER: usize = 64 << 10;

/// A connection to the upstream. Its task ends when the last reference is dropped.
pub(in crate::proxy) struct Multiplexed {
    sender: SendRequest<Bytes>,
    gate: Arc<FrameGate>,
    slots: Arc<Slots>,
    /// Ends the connection at once, with all of its streams.
    abort: CancellationToken,
    /// Its place among the connections of the upstream.
    permit: Option<OwnedSemaphorePermit>,
    /// When it becomes too old for another request.
    until: Instant,
    /// Lets the connection close when nobody uses it. Dropped after `sender`, which keeps the connection open.
    _unused: DropGuard,
}

/// The stream slots of a connection.
struct Slots {
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the peer; 0 until its first SETTINGS arrived.
    limit: AtomicUsize,
    used: AtomicUsize,
    /// When a slot was last given back.
    idle_since: Mutex<Instant>,
    /// Notifies who waits for the first SETTINGS.
    changed: Notify,
    /// Notifies who waits for a slot on any connection of the upstream.
    freed: Arc<Notify>,
}

impl Slots {
    fn idle_since(&self) -> MutexGuard<'_, Instant> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire).min(STREAMS_MAX)
    }

    fn set_limit(&self, limit: usize) {
        if self.limit.swap(limit, Ordering::AcqRel) != limit {
            self.changed.notify_waiters();
            self.freed.notify_waiters();
        }
    }
}

/// A stream slot on a connection, for one request. Dropped, it is free again.
pub(in crate::proxy) struct StreamSlot(Arc<Multiplexed>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let slots = &self.0.slots;
        *slots.idle_since() = Instant::now();
        slots.used.fetch_sub(1, Ordering::AcqRel);
        slots.freed.notify_one();
    }
}

impl Multiplexed {
    /// Begins HTTP/2 on a connection, and waits for the peer's first SETTINGS that allow a stream. `freed` is
    /// notified when a slot may have become free. `permit` is kept until the connection is dropped. Requests are taken until
    /// `until`.
    ///
    /// # Errors
    /// The connection ended before.
    pub async fn open<T>(
        io: T,
        freed: Arc<Notify>,
        permit: Option<OwnedSemaphorePermit>,
        until: Instant,
    ) -> Result<Arc<Multiplexed>, BoxError>
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
        let slots = Arc::new(Slots { limit, used, idle_since, changed: Notify::new(), freed });
        let (abort, unused) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(drive(connection, gate.clone(), slots.clone(), abort.clone(), unused.clone()));
        let opened = Multiplexed {
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

    /// Takes a slot, where one is free.
    pub fn slot(self: &Arc<Self>) -> Option<StreamSlot> {
        if self.is_old() {
            return None;
        }
        let Slots { used, .. } = &*self.slots;
        let taken = used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            (used < self.slots.limit()).then_some(used + 1)
        });
        taken.is_ok().then(|| StreamSlot(self.clone()))
    }

    /// Whether it is too old for another request.
    pub fn is_old(&self) -> bool {
        Instant::now() >= self.until
    }

    /// How many slots are free.
    pub fn free(&self) -> usize {
        self.slots.limit().saturating_sub(self.slots.used.load(Ordering::Acquire))
    }

    /// Whether no request uses it.
    pub fn is_idle(&self) -> bool {
        self.slots.used.load(Ordering::Acquire) == 0
    }

    /// For how long no request has used it; `None` where one does.
    pub fn idle_for(&self) -> Option<Duration> {
        self.is_idle().then(|| self.slots.idle_since().elapsed())
    }

    /// Whether it counts among the upstream's connections.
    pub fn is_counted(&self) -> bool {
        self.permit.is_some()
    }

    /// Whether it takes no new request: it ended, or the peer said GOAWAY.
    pub fn is_closed(&self) -> bool {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        self.abort.is_cancelled() || matches!(ready, Poll::Ready(Err(_)))
    }
}

/// Moves the bytes of a connection, and asks it for signs of life.
async fn drive<T>(
    mut connection: Connection<T, Bytes>,
    gate: Arc<FrameGate>,
    slots: Arc<Slots>,
    abort: CancellationToken,
    unused: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = connection.ping_pong();
    let silent = async {
        loop {
            sleep(KEEP_ALIVE).await;
            if gate.take_heard() {
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
        () = silent => tracing::debug!("an upstream connection gave no sign of life"),
        // Its last reference is gone: it closes by itself when it is polled.
        () = unused.cancelled() => drop(timeout(CLOSE_MAX, &mut connection).await),
    }
    drop(connection);
    slots.set_limit(0);
    slots.changed.notify_waiters();
    slots.freed.notify_waiters();
}

/// A request that got no answer.
pub(in crate::proxy) enum SendFailure<B> {
    /// The connection was closed before it took the request, which is returned.
    Closed(Box<Request<Payload<B>>>),
    /// There is no answer, for this reason.
    Failed(ForwardError),
}

impl StreamSlot {
    /// Sends a request, at most once, and waits for the head of its answer. `rule` counts as withheld until the
    /// first frame of the request is written.
    ///
    /// # Errors
    /// See [`SendFailure`].
    pub async fn send<B>(
        self,
        request: Request<Payload<B>>,
        rule: Option<Arc<SendRule>>,
    ) -> Result<Response<MultiplexedAnswer>, SendFailure<B>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let failed = |error| Err(SendFailure::Failed(error));
        if self.0.is_closed() {
            return Err(SendFailure::Closed(Box::new(request)));
        }
        let (mut head, body) = request.into_parts();
        head.extensions.clear();
        let bodiless = body.is_end_stream();
        frame_head(&mut head.headers, body.size_hint().exact());
        let Multiplexed { sender, gate, abort, .. } = &*self.0;
        let opened = gate.open(rule.as_ref(), || {
            let (answer, stream) =
                sender.clone().send_request(Request::from_parts(head, ()), bodiless)?;
            Ok::<_, h2::Error>((answer.stream_id().as_u32(), (answer, stream)))
        });
        let (id, (answer, stream)) = match opened {
            Ok(opened) => opened,
            Err(error) => return failed(ForwardError::NeverSent(error.to_string())),
        };
        let mut exchange = Exchange {
            gate: gate.clone(),
            stream: id,
            abort: abort.clone(),
            upload: None,
            refused: false,
            _slot: self,
        };
        if !bodiless {
            exchange.upload = start_upload(body, stream, rule.clone());
        }
        match answer.await {
            Ok(answer) => {
                let length = answer
                    .headers()
                    .get(CONTENT_LENGTH)
                    .and_then(|length| length.to_str().ok()?.parse().ok());
                Ok(answer.map(|stream| MultiplexedAnswer::new(stream, length, exchange)))
            }
            // The upstream does nothing with it, also where a part of it is still to be written: the others go on.
            Err(error) if was_refused(&error) => {
                exchange.refused = true;
                failed(ForwardError::NeverSent(error.to_string()))
            }
            // Nothing of it was written: it is in nobody's hands, and never leaves from now on.
            Err(error) if rule.is_some_and(|rule| rule.revoke()) => {
                failed(ForwardError::NeverSent(error.to_string()))
            }
            Err(error) => failed(failure::of_http2(&error)),
        }
    }
}

/// Sets the length of a request's body, and drops what HTTP/2 has no place for (RFC 9113, section 8.2.2). The length of an
/// empty body stands in the head already, where it is sent at all.
fn frame_head(headers: &mut HeaderMap, length: Option<u64>) {
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    if let Some(length) = length.filter(|length| *length != 0) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Whether the upstream said that it did not touch the stream: REFUSED_STREAM, or a GOAWAY whose last stream is below
/// it (RFC 9113, sections 6.8 and 8.7). h2 reports a remote GOAWAY only to the streams above that one.
fn was_refused(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)
            || error.is_go_away())
}

/// Writes a body, in a task of its own where it can't be written at once.
fn start_upload<B>(
    body: Payload<B>,
    stream: SendStream<Bytes>,
    rule: Option<Arc<SendRule>>,
) -> Option<Upload>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let mut upload = Box::pin(async move {
        let mut stream = stream;
        if let Err(reason) = upload(body, &mut stream, rule.as_deref()).await {
            stream.send_reset(reason);
        }
    });
    match upload.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(()) => None,
        Poll::Pending => Some(Upload(tokio::spawn(upload).abort_handle())),
    }
}

/// The task that writes a request's body. Dropped, it stops.
struct Upload(AbortHandle);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes a body in pieces that the peer's windows take at once, each only while the send rule holds.
async fn upload<B>(
    mut body: Payload<B>,
    stream: &mut SendStream<Bytes>,
    rule: Option<&SendRule>,
) -> Result<(), Reason>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let unless_reset =
        |stream: &mut SendStream<Bytes>, cx: &mut Context<'_>| match stream.poll_reset(cx) {
            Poll::Ready(reset) => Err(reset.unwrap_or(Reason::CANCEL)),
            Poll::Pending => Ok(()),
        };
    loop {
        let frame = std::future::poll_fn(|cx| {
            unless_reset(stream, cx)?;
            Pin::new(&mut body).poll_frame(cx).map(Ok::<_, Reason>)
        });
        let frame = match frame.await? {
            None => return stream.send_data(Bytes::new(), true).map_err(|_| Reason::CANCEL),
            Some(frame) => frame.map_err(|_| Reason::CANCEL)?,
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            // Trailers are dropped, as HTTP/1.1 upstreams get none: the gateway has not read keys, scopes and callers in
            // them, and an upstream may merge them into the head (RFC 9110, section 6.5.1).
            Err(_) => continue,
        };
        let last = body.is_end_stream();
        if data.is_empty() && last {
            return stream.send_data(data, true).map_err(|_| Reason::CANCEL);
        }
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let capacity = std::future::poll_fn(|cx| {
                unless_reset(stream, cx)?;
                stream
                    .poll_capacity(cx)
                    .map(|capacity| capacity.and_then(Result::ok).ok_or(Reason::CANCEL))
            });
            let capacity = capacity.await?;
            if rule.is_some_and(|rule| !rule.allows()) {
                return Err(Reason::CANCEL);
            }
            let piece = data.split_to(capacity.min(data.len()));
            if !piece.is_empty() {
                stream.send_data(piece, last && data.is_empty()).map_err(|_| Reason::CANCEL)?;
            }
        }
        if last {
            return Ok(());
        }
    }
}

/// A request under way.
struct Exchange {
    gate: Arc<FrameGate>,
    stream: u32,
    abort: CancellationToken,
    upload: Option<Upload>,
    /// The upstream said that it does nothing with the request.
    refused: bool,
    _slot: StreamSlot,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.upload = None;
        if self.refused {
            self.gate.forget(self.stream);
        } else if self.gate.finish(self.stream) {
            self.abort.cancel();
        }
    }
}

/// The body of an answer. Dropped before its end, it resets its stream.
pub(in crate::proxy) struct MultiplexedAnswer {
    stream: RecvStream,
    /// What is left of the announced length.
    left: Option<u64>,
    in_trailers: bool,
    /// Bytes of the body that were taken.
    taken: usize,
    ended: bool,
    exchange: Exchange,
}

impl MultiplexedAnswer {
    fn new(stream: RecvStream, length: Option<u64>, exchange: Exchange) -> MultiplexedAnswer {
        // An answer to HEAD announces the length of a body that is not there.
        let left = if stream.is_end_stream() { Some(0) } else { length };
        MultiplexedAnswer { stream, left, in_trailers: false, taken: 0, ended: false, exchange }
    }
}

impl MultiplexedAnswer {
    /// What an error means: the end, where END_STREAM came before the connection ended, else that the answer was cut. Errors
    /// of this side are none of that: the library refuses an answer, or the request was given up.
    fn broken(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, BoxError>> {
        let connection_ended = error.is_io() || error.is_go_away() && error.is_remote();
        self.ended = true;
        let short = self.left.is_some_and(|left| left > 0);
        if connection_ended
            && !short
            && self.exchange.gate.has_ended(self.exchange.stream, self.taken)
        {
            return None;
        }
        Some(Err(error.into()))
    }
}

impl Body for MultiplexedAnswer {
    type Data = Bytes;
    type Error = BoxError;

    /// Every end but END_STREAM is an error, also a reset with NO_ERROR or CANCEL: the answer may have been cut. What happens
    /// after END_STREAM, such as a reset of the rest of the request or the end of the connection, is none.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if !this.in_trailers {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.taken += data.len();
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(this.broken(error)),
                None => this.in_trailers = true,
            }
        }
        let trailers = ready!(this.stream.poll_trailers(cx));
        this.ended = true;
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => this.broken(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
