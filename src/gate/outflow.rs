//! Bounds the bytes of a streamed body that are not yet written to the connection, so that a client
//! that reads nothing takes little memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

/// Bytes of one body that may wait to be written. While this many wait, the body is not polled for
/// more.
const WAITING_MAX: usize = 16 * 1024;

/// The bytes of one body that wait to be written.
#[derive(Debug, Default)]
pub struct Outflow {
    waiting: AtomicUsize,
    waker: AtomicWaker,
}

/// A piece of a body. Its bytes count until the connection has written the piece and dropped the
/// last part of it.
struct Piece<K> {
    bytes: Bytes,
    outflow: Arc<Outflow>,
    _keep: K,
}

impl<K> AsRef<[u8]> for Piece<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<K> Drop for Piece<K> {
    fn drop(&mut self) {
        self.outflow.waiting.fetch_sub(self.bytes.len(), Ordering::AcqRel);
        self.outflow.waker.wake();
    }
}

impl Outflow {
    /// Waits until the body may be polled for more.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // A piece may have been written between the first check and the registration.
        if self.has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Acquire) < WAITING_MAX
    }

    /// Counts bytes until they are written, and then drops `keep`.
    pub fn count<K: Send + 'static>(self: &Arc<Outflow>, bytes: Bytes, keep: K) -> Bytes {
        self.waiting.fetch_add(bytes.len(), Ordering::AcqRel);
        Bytes::from_owner(Piece { bytes, outflow: self.clone(), _keep: keep })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_waits_until_its_pieces_are_written() {
        let outflow = Arc::new(Outflow::default());
        let mut piece = outflow.count(Bytes::from(vec![b'x'; WAITING_MAX]), ());
        let waiting = tokio::spawn({
            let outflow = outflow.clone();
            async move { std::future::poll_fn(|cx| outflow.poll_room(cx)).await }
        });
        tokio::task::yield_now().await;
        let rest = piece.split_off(10);
        drop(piece);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "a part of it still waits");
        drop(rest);
        waiting.await.unwrap();
    }
}
