//! Request bodies that stream through. The gate keeps no bytes of them, except for a requested
//! copy.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

use crate::gate::budget::Hold;
use crate::gate::outflow::Outflow;

/// The time of the last progress of a streamed request. An upload in progress does not count as
/// silence.
#[derive(Debug, Clone)]
pub struct Movement {
    began: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Movement {
    /// Starts now.
    pub fn begin() -> Movement {
        Movement { began: Instant::now(), last_ms: Arc::default() }
    }

    /// Records progress.
    pub fn note(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Waits until there was no progress for `silence`.
    pub async fn ceased(&self, silence: Duration) {
        loop {
            let until =
                self.began + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + silence;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// The callback at the end of a body. It gets the copy of the body, and the memory of the copy. The
/// copy is `None` if the body was larger than the limit, or if too little memory was left.
type Done = Box<dyn FnOnce(Option<Bytes>, Hold) + Send>;

struct Copy {
    bytes: Option<BytesMut>,
    limit: usize,
    room: Hold,
    done: Done,
}

/// A request body that streams through.
pub struct Stream<B> {
    body: B,
    movement: Option<Movement>,
    /// Boxed: copies are rare, and requests are moved often.
    copy: Option<Box<Copy>>,
    /// Counts the bytes that the upstream's connection has not written yet. `None` until the first
    /// frame that is not the last one.
    outflow: Option<Arc<Outflow>>,
}

impl<B> std::fmt::Debug for Stream<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream(..)")
    }
}

impl<B: Body<Data = Bytes>> Stream<B> {
    /// Streams a body without a copy.
    pub fn new(body: B) -> Stream<B> {
        Stream { body, movement: None, copy: None, outflow: None }
    }

    /// Records progress in `movement`.
    pub fn noting(self, movement: Movement) -> Stream<B> {
        Stream { movement: Some(movement), ..self }
    }

    /// Copies up to `limit` bytes for `done`. `room` takes the memory of the copy.
    pub fn copying(
        self,
        limit: usize,
        room: Hold,
        done: impl FnOnce(Option<Bytes>, Hold) + Send + 'static,
    ) -> Stream<B> {
        let copy = Copy { bytes: Some(BytesMut::new()), limit, room, done: Box::new(done) };
        let mut stream = Stream { copy: Some(Box::new(copy)), ..self };
        if stream.body.is_end_stream() {
            stream.finish();
        }
        stream
    }

    fn finish(&mut self) {
        if let Some(copy) = self.copy.take() {
            let Copy { bytes, room, done, .. } = *copy;
            done(bytes.map(BytesMut::freeze), room);
        }
    }

    fn observe(&mut self, frame: Option<&Frame<Bytes>>) {
        if let Some(movement) = &self.movement {
            movement.note();
        }
        let Some(copy) = &mut self.copy else { return };
        if let (Some(bytes), Some(data)) = (&mut copy.bytes, frame.and_then(Frame::data_ref)) {
            let fits = bytes.len() + data.len() <= copy.limit && {
                let before = bytes.capacity();
                bytes.extend_from_slice(data);
                copy.room.grow(bytes.capacity() - before)
            };
            if !fits {
                copy.bytes = None;
            }
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.finish();
        }
    }
}

impl<B> Body for Stream<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(outflow) = &this.outflow {
            ready!(outflow.poll_room(cx));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(data)) => this.observe(Some(data)),
            None => this.observe(None),
            Some(Err(_)) => this.copy = None,
        }
        if this.body.is_end_stream() {
            return Poll::Ready(frame);
        }
        let outflow = this.outflow.get_or_insert_default();
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|data| outflow.count(data, ())))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    //! Copies of bodies that stream through.

    use std::sync::Mutex;

    use http_body_util::{BodyExt, Full};
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::gate::budget::Budget;

    /// Copies a body of 100 bytes, with a budget of `room` bytes. Returns the copy, the bytes that
    /// are held while the copy is in use, and the bytes that are held afterwards.
    async fn copied(room: usize) -> (Option<Bytes>, i64, i64) {
        let gauge = Gauge::default();
        let budget = Budget::new(room, room, gauge.clone());
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let body = Full::new(Bytes::from_static(&[b'x'; 100]));
        let stream = Stream::new(body).copying(1000, budget.hold(), move |bytes, room| {
            *keep.lock().unwrap() = Some((bytes, room));
        });
        assert_eq!(
            stream.collect().await.unwrap().to_bytes().len(),
            100,
            "the body itself streams on"
        );
        let (bytes, room) = kept.lock().unwrap().take().unwrap();
        let held = gauge.get();
        drop(room);
        (bytes, held, gauge.get())
    }

    #[tokio::test]
    async fn a_copy_takes_memory_while_it_is_used_and_without_memory_there_is_no_copy() {
        let (bytes, held, left) = copied(1 << 20).await;
        assert_eq!(bytes.map(|bytes| bytes.len()), Some(100));
        assert!(held >= 100 && left == 0, "{held} held, {left} left");
        assert_eq!(copied(99).await, (None, 0, 0));
    }
}
