//! Bytes that arrived from a client and were not read yet: unfinished heads, and bodies on HTTP/2
//! connections. On HTTP/2, a client may send until its windows are full, even if nobody reads the
//! bodies.
//!
//! Danger: each connection has windows, and there are many connections. So these bytes count in the
//! memory budget. While the budget is exhausted, the gateway reads nothing more from a connection
//! that holds a part of it. TCP then stops the client.

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

/// Bytes that a connection may hold although the budget is exhausted. So a small request is not
/// delayed, and gets its 503 at once.
const FREE_BYTES: usize = 16 * 1024;

/// The maximum of bytes that are counted for one connection. Its windows allow fewer. A higher
/// count would be an error, for example because of frames of cancelled streams.
const COUNTED_MAX: usize = 8 << 20;

/// How long a connection waits for memory. The wait must end, because the waiting connections may
/// themselves hold all memory, with heads that can't be completed. Also, the gateway can't notice
/// that a client leaves while it reads nothing.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Time between two checks of the budget.
const PAUSE: Duration = Duration::from_millis(20);

/// The memory that one connection takes from the budget for bytes that were not read yet.
pub(in crate::proxy) struct Inflow {
    budget: Budget,
    bytes: AtomicUsize,
    /// The number of bodies that exist.
    bodies: AtomicUsize,
}

impl Inflow {
    /// Creates an empty count in this budget.
    pub fn new(budget: Budget) -> Inflow {
        Inflow { budget, bytes: AtomicUsize::new(0), bodies: AtomicUsize::new(0) }
    }

    /// Counts bytes that arrived. They are in memory already, so the budget can't refuse them.
    pub fn add(&self, bytes: usize) {
        let bytes = bytes.min(COUNTED_MAX.saturating_sub(self.bytes.load(Ordering::Relaxed)));
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.budget.overdraw(bytes);
    }

    /// Gives back the memory of bytes that were read.
    pub fn remove(&self, bytes: usize) {
        let less = |held: usize| Some(held.saturating_sub(bytes));
        let held = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
        self.budget.give_back(held.min(bytes));
    }

    /// Returns whether the gateway must wait, before it reads from the connection, until other
    /// connections have given memory back.
    pub fn must_wait(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > FREE_BYTES && self.budget.is_exhausted()
    }

    /// Returns whether all bodies of the connection are gone, so that no more bytes can be read.
    pub fn has_no_bodies(&self) -> bool {
        self.bodies.load(Ordering::Acquire) == 0
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        self.budget.give_back(*self.bytes.get_mut());
    }
}

/// Counts the bytes that a connection's guard holds back or has passed on, and waits for memory.
pub(in crate::proxy) struct InflowAccount {
    inflow: Arc<Inflow>,
    /// Bytes counted for unfinished heads.
    heads: usize,
    /// Whether frames of bodies were passed on since the reader last got `Pending`.
    fresh: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// The time from which the connection waits for memory.
    waiting: Option<Instant>,
}

impl InflowAccount {
    pub fn new(inflow: Arc<Inflow>) -> InflowAccount {
        InflowAccount { inflow, heads: 0, fresh: false, timer: None, waiting: None }
    }

    /// Waits until more may be read.
    ///
    /// # Errors
    /// `TimedOut` if the budget stayed exhausted for too long. The connection then ends.
    pub fn poll_memory(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// Sets the bytes that unfinished heads hold now.
    pub fn set_heads(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.heads, bytes);
        if bytes > before {
            self.inflow.add(bytes - before);
        } else if bytes < before {
            self.inflow.remove(before - bytes);
        }
    }

    /// Counts bytes of bodies that were passed on.
    pub fn add_bodies(&mut self, bytes: usize) {
        if bytes > 0 {
            self.inflow.add(bytes);
            self.fresh = true;
        }
    }

    /// Corrects the count when the reader gets `Pending`. By then all bytes that were passed on
    /// before were read, or were dropped with their stream.
    pub fn reader_is_pending(&mut self) {
        if !std::mem::take(&mut self.fresh) && self.inflow.has_no_bodies() {
            self.inflow.remove(usize::MAX);
            self.inflow.add(self.heads);
        }
    }
}

/// A request's body. On HTTP/2, reading its bytes gives their memory back.
pub(in crate::proxy) struct CountedBody {
    body: Incoming,
    inflow: Option<Arc<Inflow>>,
}

impl CountedBody {
    /// Wraps a body. `inflow` is the count of its bytes, on HTTP/2.
    pub(in crate::proxy) fn new(body: Incoming, inflow: Option<Arc<Inflow>>) -> CountedBody {
        if let Some(inflow) = &inflow {
            inflow.bodies.fetch_add(1, Ordering::AcqRel);
        }
        CountedBody { body, inflow }
    }

    /// Returns whether the body arrived over HTTP/2.
    pub(in crate::proxy) fn is_framed(&self) -> bool {
        self.inflow.is_some()
    }

    fn count_read(&self, frame: &Frame<Bytes>) {
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
            self.count_read(frame);
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
        // The unread frames are dropped with the body, so their memory is given back too.
        let mut cx = Context::from_waker(Waker::noop());
        while !self.body.is_end_stream() {
            match Pin::new(&mut self.body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => self.count_read(&frame),
                _ => break,
            }
        }
        inflow.bodies.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Returns the memory that header fields cost, in bytes.
pub(in crate::proxy) fn fields_cost(fields: &HeaderMap) -> usize {
    text_bytes(fields) + fields.len() * FIELD_BYTES
}

/// Returns the bytes of all names and values.
pub(in crate::proxy) fn text_bytes(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    fn account(budget: &Budget) -> (Arc<Inflow>, InflowAccount) {
        let inflow = Arc::new(Inflow::new(budget.clone()));
        (inflow.clone(), InflowAccount::new(inflow))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_memory_and_ends_when_it_waits_too_long() {
        let gauge = Gauge::default();
        let budget = Budget::new(100_000, 100_000, gauge.clone());
        let ((other, _), (_inflow, mut waiting)) = (account(&budget), account(&budget));
        waiting.set_heads(FREE_BYTES + 1);
        other.add(100_000);
        let mut waits = std::pin::pin!(std::future::poll_fn(|cx| waiting.poll_memory(cx)));
        assert!(tokio::time::timeout(WAIT_MAX / 2, &mut waits).await.is_err());
        other.remove(100_000);
        assert!(waits.await.is_ok());
        other.add(100_000);
        let began = Instant::now();
        assert!(std::future::poll_fn(|cx| waiting.poll_memory(cx)).await.is_err());
        assert!(began.elapsed() >= WAIT_MAX);
        // A connection that holds little does not wait.
        waiting.set_heads(FREE_BYTES);
        assert!(std::future::poll_fn(|cx| waiting.poll_memory(cx)).await.is_ok());
        drop((other, waiting, _inflow));
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn bytes_of_dropped_streams_are_given_back_when_the_reader_is_pending_again() {
        let gauge = Gauge::default();
        let (_inflow, mut account) = account(&Budget::new(100_000, 100_000, gauge.clone()));
        account.add_bodies(50_000);
        account.set_heads(10);
        account.reader_is_pending();
        assert_eq!(gauge.get(), 50_010, "their request may not have been accepted yet");
        account.reader_is_pending();
        assert_eq!(gauge.get(), 10);
    }
}
