//! The active requests of a client connection, and the answers that its client has not taken yet.
//!
//! Danger: an HTTP/2 client decides how much of an answer it takes. A client that opens no window
//! could block an answer and its permit forever. So the answer is handed out in pieces, and the
//! client has to take each piece in time.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::gate::{Hold, Outflow};
use crate::proxy::inbound::guarded_bytes::GuardVerdict;
use crate::proxy::inbound::request_observer::RequestObserver;

/// Bytes of an answer that are handed to an HTTP/2 connection at once: a frame's default size
/// (RFC 9113, section 6.5.2).
const PIECE_BYTES: usize = 16 * 1024;

/// The state of a client connection, shared by its stream, its guard and its requests.
#[derive(Debug, Default)]
pub(in crate::proxy) struct ConnectionState {
    /// Active requests.
    pub requests: AtomicUsize,
    /// Requests so far, active or finished.
    pub begun: AtomicU64,
    /// Whether the connection is HTTP/2. On HTTP/2, a byte that arrives between requests may belong
    /// to another frame than a header block.
    pub framed: AtomicBool,
    pub verdict: Arc<GuardVerdict>,
    /// HTTP/2: the answers with a piece that the client has not taken yet. Each entry has the
    /// number of the request, and the time from which the piece waits.
    untaken: Mutex<Vec<(u64, Instant)>>,
}

impl ConnectionState {
    /// Returns the time from which the oldest waiting piece waits.
    pub fn untaken_since(&self) -> Option<Instant> {
        self.untaken().iter().map(|(_, since)| *since).min()
    }

    fn untaken(&self) -> MutexGuard<'_, Vec<(u64, Instant)>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard for an active request; dropping it marks the request finished.
pub(in crate::proxy) struct ActiveRequest {
    state: Arc<ConnectionState>,
    number: u64,
}

impl ActiveRequest {
    pub fn new(state: Arc<ConnectionState>) -> ActiveRequest {
        state.requests.fetch_add(1, Ordering::AcqRel);
        let number = state.begun.fetch_add(1, Ordering::AcqRel);
        ActiveRequest { state, number }
    }

    /// Returns the number of the request on its connection, counted from zero.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn handed_out(&self) {
        self.state.untaken().push((self.number, Instant::now()));
    }

    fn taken(&self) {
        self.state.untaken().retain(|(number, _)| *number != self.number);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.state.requests.fetch_sub(1, Ordering::AcqRel);
        if self.state.framed.load(Ordering::Acquire) {
            self.taken();
        }
    }
}

/// Time between two checks of a connection that is closing.
const NOTICE: Duration = Duration::from_secs(1);

/// Waits for the end of the server, and then until the connection has no active request. An HTTP/2
/// client has to agree to the end (RFC 9113, section 6.8), and an unresponsive one would delay the
/// shutdown. Sets `refusing` when new requests of the connection have to be refused.
pub(in crate::proxy) async fn idle_while_closing(
    closing: CancellationToken,
    state: Arc<ConnectionState>,
    refusing: Arc<AtomicBool>,
) {
    closing.cancelled().await;
    let mut was_idle = false;
    loop {
        tokio::time::sleep(NOTICE).await;
        refusing.store(true, Ordering::Release);
        // The connection must be idle in two checks in a row: after a request has finished, the end
        // of its answer may still have to be written.
        let is_idle = state.requests.load(Ordering::Acquire) == 0;
        if is_idle && was_idle {
            return;
        }
        was_idle = is_idle;
    }
}

/// A response body that keeps its request active until it is dropped.
pub(in crate::proxy) struct TrackedBody<B> {
    body: B,
    active: ActiveRequest,
    observer: RequestObserver,
    /// Whether the connection is HTTP/2. Such a connection polls for a frame only when it has room
    /// for one, so a poll shows that the client took the last piece. On HTTP/1.1 the socket shows
    /// this.
    in_pieces: bool,
    /// The part of a frame that was not handed out yet.
    rest: Bytes,
    /// The bytes that the connection has not written yet.
    outflow: Arc<Outflow>,
    /// The request's memory, which is given back when the answer is written.
    memory: Arc<Hold>,
}

impl<B: Body> TrackedBody<B> {
    pub fn new(
        body: B,
        active: ActiveRequest,
        observer: RequestObserver,
        memory: Hold,
    ) -> TrackedBody<B> {
        let in_pieces = active.state.framed.load(Ordering::Acquire);
        if in_pieces && !body.is_end_stream() {
            active.handed_out();
        }
        TrackedBody {
            body,
            active,
            observer,
            in_pieces,
            rest: Bytes::new(),
            outflow: Arc::default(),
            memory: Arc::new(memory),
        }
    }
}

impl<B> TrackedBody<B> {
    /// Hands out a part of the answer. The part counts in the memory budget until it is written.
    fn piece(&mut self, data: Bytes) -> Bytes {
        self.observer.count_body(data.len());
        self.outflow.count(data, self.memory.clone())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        std::task::ready!(this.outflow.poll_room(cx));
        if !this.in_pieces {
            let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
            return Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|data| this.piece(data)))));
        }
        this.active.taken();
        if this.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        this.active.handed_out();
        Poll::Ready(Some(Ok(Frame::data(this.piece(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let upper = hint.upper();
        hint.set_lower(hint.lower() + rest);
        if let Some(upper) = upper {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
