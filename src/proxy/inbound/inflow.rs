//! Bytes that came in from a client and that nobody has taken yet: unfinished heads, and bodies on HTTP/2 connections, where
//! the client sends as far as its windows are open, whether somebody reads or not.
//!
//! Danger: windows are per connection and connections are many. So these bytes count in the common buffers, and where
//! those are full nothing more is read from a connection that holds some. The system then stops its client.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use crate::gate::Budget;
use crate::proxy::inbound::byte_guard::{DATA_BYTES_MIN, FIELD_BYTES};

/// What a connection may hold although the common buffers are full, in bytes: small requests are not held up, and are
/// answered 503 at once.
const FREE_BYTES: usize = 16 * 1024;

/// What one connection is counted with at most. What its windows allow is less; beyond, the count would be wrong, as it is
/// by frames of streams that were given up.
const COUNTED_MAX: usize = 8 << 20;

/// How long a connection waits for room. Those who wait may be the very ones that hold it all, with heads that can't be
/// completed; and a client that has left meanwhile is not seen, as nothing is read.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Between two looks whether there is room again.
const PAUSE: Duration = Duration::from_millis(20);

/// What one connection holds of the common buffers for bytes that nobody has taken yet.
pub(in crate::proxy) struct Inflow {
    budget: Budget,
    bytes: AtomicUsize,
    /// Bodies that are not dropped yet.
    bodies: AtomicUsize,
}

impl Inflow {
    /// Counts in this budget.
    pub fn new(budget: Budget) -> Inflow {
        Inflow { budget, bytes: AtomicUsize::new(0), bodies: AtomicUsize::new(0) }
    }

    /// Counts bytes that came in. They are in memory already, so there is no asking whether there is room.
    pub fn add(&self, bytes: usize) {
        let bytes = bytes.min(COUNTED_MAX.saturating_sub(self.bytes.load(Ordering::Relaxed)));
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.budget.overdraw(bytes);
    }

    /// Counts bytes out that were taken.
    pub fn remove(&self, bytes: usize) {
        let less = |held: usize| Some(held.saturating_sub(bytes));
        let held = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
        self.budget.give_back(held.min(bytes));
    }

    /// Whether nothing may be read before others have given room back.
    pub fn must_wait(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > FREE_BYTES && self.budget.is_exhausted()
    }

    /// Whether no body is left that could still be taken.
    pub fn is_quiet(&self) -> bool {
        self.bodies.load(Ordering::Acquire) == 0
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        self.budget.give_back(*self.bytes.get_mut());
    }
}

/// A connection's own account: what the guard holds back or has passed on, and what waits for room.
pub(in crate::proxy) struct Account {
    inflow: Arc<Inflow>,
    /// What is counted for unfinished heads.
    heads: usize,
    /// Frames of bodies were passed on since the reader was last told that there is nothing more for now.
    fresh: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the connection waits for room.
    waiting: Option<Instant>,
}

impl Account {
    pub fn new(inflow: Arc<Inflow>) -> Account {
        Account { inflow, heads: 0, fresh: false, timer: None, waiting: None }
    }

    /// Waits until more may be read.
    ///
    /// # Errors
    /// `TimedOut` where there was no room for too long: the connection ends.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.inflow.must_wait() {
            let since = *self.waiting.get_or_insert_with(Instant::now);
            if since.elapsed() >= WAIT_MAX {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
            std::task::ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
        self.waiting = None;
        Poll::Ready(Ok(()))
    }

    /// Counts what unfinished heads hold now, instead of what they held before.
    pub fn heads(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.heads, bytes);
        if bytes > before {
            self.inflow.add(bytes - before);
        } else if bytes < before {
            self.inflow.remove(before - bytes);
        }
    }

    /// Counts frames of bodies that are passed on.
    pub fn bodies(&mut self, bytes: usize) {
        if bytes > 0 {
            self.inflow.add(bytes);
            self.fresh = true;
        }
    }

    /// The reader is told that there is nothing more for now: whatever was passed on before is in somebody's hands, or was
    /// thrown away with its stream.
    pub fn nothing_more(&mut self) {
        if !std::mem::take(&mut self.fresh) && self.inflow.is_quiet() {
            self.inflow.remove(usize::MAX);
            self.inflow.add(self.heads);
        }
    }
}

/// A request's body. On HTTP/2 its bytes are counted out as they are taken.
pub(in crate::proxy) struct CountedBody {
    body: Incoming,
    inflow: Option<Arc<Inflow>>,
}

impl CountedBody {
    /// A body that came on a connection; `inflow`: where its bytes were counted.
    pub(in crate::proxy) fn new(body: Incoming, inflow: Option<Arc<Inflow>>) -> CountedBody {
        if let Some(inflow) = &inflow {
            inflow.bodies.fetch_add(1, Ordering::AcqRel);
        }
        CountedBody { body, inflow }
    }

    /// Returns whether the body came over HTTP/2.
    pub(in crate::proxy) fn is_framed(&self) -> bool {
        self.inflow.is_some()
    }

    fn took(&self, frame: &Frame<Bytes>) {
        let Some(inflow) = &self.inflow else { return };
        let bytes = frame.data_ref().map_or(0, |data| data.len().max(DATA_BYTES_MIN));
        inflow.remove(bytes + frame.trailers_ref().map_or(0, fields_cost));
    }
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.took(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        let Some(inflow) = self.inflow.clone() else { return };
        // What is thrown away with it is counted out too.
        let mut cx = Context::from_waker(Waker::noop());
        while !self.body.is_end_stream() {
            match Pin::new(&mut self.body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => self.took(&frame),
                _ => break,
            }
        }
        inflow.bodies.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What header fields cost in memory, in bytes.
pub(in crate::proxy) fn fields_cost(fields: &HeaderMap) -> usize {
    text_bytes(fields) + fields.len() * FIELD_BYTES
}

/// The bytes of all names and values.
pub(in crate::proxy) fn text_bytes(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    fn account(budget: &Budget) -> (Arc<Inflow>, Account) {
        let inflow = Arc::new(Inflow::new(budget.clone()));
        (inflow.clone(), Account::new(inflow))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_room_and_ends_when_there_is_none_for_too_long() {
        let gauge = Gauge::default();
        let budget = Budget::new(100_000, 100_000, gauge.clone());
        let ((other, _), (_inflow, mut waiting)) = (account(&budget), account(&budget));
        waiting.heads(FREE_BYTES + 1);
        other.add(100_000);
        let mut room = std::pin::pin!(std::future::poll_fn(|cx| waiting.poll_room(cx)));
        assert!(tokio::time::timeout(WAIT_MAX / 2, &mut room).await.is_err());
        other.remove(100_000);
        assert!(room.await.is_ok());
        other.add(100_000);
        let began = Instant::now();
        assert!(std::future::poll_fn(|cx| waiting.poll_room(cx)).await.is_err());
        assert!(began.elapsed() >= WAIT_MAX);
        // Whoever holds little is not held up.
        waiting.heads(FREE_BYTES);
        assert!(std::future::poll_fn(|cx| waiting.poll_room(cx)).await.is_ok());
        drop((other, waiting, _inflow));
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn what_is_in_nobodys_hands_any_more_is_counted_out_when_the_connection_is_quiet() {
        let gauge = Gauge::default();
        let (_inflow, mut account) = account(&Budget::new(100_000, 100_000, gauge.clone()));
        account.bodies(50_000);
        account.heads(10);
        account.nothing_more();
        assert_eq!(gauge.get(), 50_010, "their request may not have been taken up yet");
        account.nothing_more();
        assert_eq!(gauge.get(), 10);
    }
}
