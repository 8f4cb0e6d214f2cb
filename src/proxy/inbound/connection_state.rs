//! What is under way on a client's connection: requests, and answers that the client has to take.
//!
//! Danger: on HTTP/2 the client says how much of an answer it takes, and one that opens no window holds the answer, and
//! its place, for as long as it likes. So an answer is handed out in pieces, and each has to be taken in time.

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

/// Bytes of an answer that are handed to an HTTP/2 connection at once: a frame's default size (RFC 9113, section 6.5.2).
const PIECE_BYTES: usize = 16 * 1024;

/// How many requests a connection has under way.
#[derive(Debug, Default)]
pub(in crate::proxy) struct ConnectionState {
    pub requests: AtomicUsize,
    /// How many there were so far.
    pub begun: AtomicU64,
    /// HTTP/2: what comes in between requests is no header block.
    pub framed: AtomicBool,
    pub verdict: Arc<GuardVerdict>,
    /// HTTP/2: answers of which the client has still to take what was handed out, and since when.
    untaken: Mutex<Vec<(u64, Instant)>>,
}

impl ConnectionState {
    /// Since when the longest waiting answer has not been taken.
    pub fn untaken_since(&self) -> Option<Instant> {
        self.untaken().iter().map(|(_, since)| *since).min()
    }

    fn untaken(&self) -> MutexGuard<'_, Vec<(u64, Instant)>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is under way until this is gone.
pub(in crate::proxy) struct ActiveRequest {
    quiet: Arc<ConnectionState>,
    number: u64,
}

impl ActiveRequest {
    pub fn new(quiet: Arc<ConnectionState>) -> ActiveRequest {
        quiet.requests.fetch_add(1, Ordering::AcqRel);
        let number = quiet.begun.fetch_add(1, Ordering::AcqRel);
        ActiveRequest { quiet, number }
    }

    /// The number of the request on its connection, from zero on.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn handed_out(&self) {
        self.quiet.untaken().push((self.number, Instant::now()));
    }

    fn taken(&self) {
        self.quiet.untaken().retain(|(number, _)| *number != self.number);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.quiet.requests.fetch_sub(1, Ordering::AcqRel);
        if self.quiet.framed.load(Ordering::Acquire) {
            self.taken();
        }
    }
}

/// Between two looks at a connection whose client was told that no more requests are taken.
const NOTICE: Duration = Duration::from_secs(1);

/// Waits for the end of the server, and then until the connection has no request under way: a client over HTTP/2 has to agree to the
/// end (RFC 9113, section 6.8), and one that is asleep would hold up all others. What it sends from then on comes `late`.
pub(in crate::proxy) async fn idle_while_ending(
    closing: CancellationToken,
    requests: Arc<ConnectionState>,
    late: Arc<AtomicBool>,
) {
    closing.cancelled().await;
    let mut was_idle = false;
    loop {
        tokio::time::sleep(NOTICE).await;
        late.store(true, Ordering::Release);
        // Twice in a row: the end of an answer may still be on its way when its request is over.
        let is_idle = requests.requests.load(Ordering::Acquire) == 0;
        if is_idle && was_idle {
            return;
        }
        was_idle = is_idle;
    }
}

/// A response body whose connection is busy until it is gone.
pub(in crate::proxy) struct TrackedBody<B> {
    body: B,
    busy: ActiveRequest,
    seen: RequestObserver,
    /// On HTTP/2: whoever asks for a frame has room for it. (HTTP/1.1 shows by its socket whether anything is taken.)
    in_pieces: bool,
    /// Of a frame: what is not yet handed out.
    rest: Bytes,
    /// What the connection has not written yet.
    outflow: Arc<Outflow>,
    /// The request's room in the common buffers, given back when the answer is written.
    room: Arc<Hold>,
}

impl<B: Body> TrackedBody<B> {
    pub fn new(body: B, busy: ActiveRequest, seen: RequestObserver, room: Hold) -> TrackedBody<B> {
        let in_pieces = busy.quiet.framed.load(Ordering::Acquire);
        if in_pieces && !body.is_end_stream() {
            busy.handed_out();
        }
        TrackedBody {
            body,
            busy,
            seen,
            in_pieces,
            rest: Bytes::new(),
            outflow: Arc::default(),
            room: Arc::new(room),
        }
    }
}

impl<B> TrackedBody<B> {
    /// Hands a part of the answer out, which counts until it is written.
    fn piece(&mut self, data: Bytes) -> Bytes {
        self.seen.handed_out(data.len());
        self.outflow.count(data, self.room.clone())
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
        this.busy.taken();
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
        this.busy.handed_out();
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
