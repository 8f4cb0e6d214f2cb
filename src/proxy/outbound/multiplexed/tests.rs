//! Which requests are written after the peer has lowered its limit of streams.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::task::{Context, Waker};
use std::time::Duration;

use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;
use crate::clock::Clock;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM_AND_HEADERS: u8 = 5;
const MAX_CONCURRENT_STREAMS: u8 = 3;

/// The server's side of a connection. It writes frames byte by byte.
struct Peer(DuplexStream);

impl Peer {
    async fn write_frame(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).unwrap();
        self.0
            .write_all(&[&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat())
            .await
            .unwrap();
    }

    async fn limit(&mut self, streams: u8) {
        self.write_frame(SETTINGS, 0, 0, &[0, MAX_CONCURRENT_STREAMS, 0, 0, 0, streams]).await;
    }

    async fn answer(&mut self, stream: u8) {
        const STATUS_200: u8 = 0x80 | 8;
        self.write_frame(HEADERS, END_STREAM_AND_HEADERS, stream, &[STATUS_200]).await;
    }

    /// Reads the next request and returns its stream. Returns `None` if the connection ends before
    /// a request.
    async fn request(&mut self) -> Option<u8> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            self.0.read_exact(&mut payload).await.ok()?;
            if head[3] == HEADERS {
                return Some(head[8]);
            }
        }
    }
}

/// Opens a connection to a peer that allows two requests at once.
async fn connected() -> (Peer, Arc<Http2Connection>) {
    let (client, server) = duplex(1 << 16);
    let mut peer = Peer(server);
    peer.limit(2).await;
    let connection =
        Http2Connection::open(client, Arc::default(), None, Instant::now() + LEASE).await.unwrap();
    peer.0.read_exact(&mut [0; 24]).await.unwrap();
    (peer, connection)
}

fn request() -> Request<Payload<Full<Bytes>>> {
    let request = Request::post("https://upstream.example/v1/payments");
    request.body(Payload::whole(Bytes::new(), None)).unwrap()
}

fn rule(lease: Duration) -> Arc<SendRule> {
    let rule = SendRule::new(Clock::system(), Clock::system().boot_ms(), lease);
    rule.withhold();
    Arc::new(rule)
}

const LEASE: Duration = Duration::from_secs(60);

/// Sends a request. While another request also has a slot, the peer lowers the limit to one.
/// Returns the other slot.
async fn lowered() -> (Peer, tokio::task::JoinHandle<bool>, StreamSlot) {
    let (mut peer, connection) = connected().await;
    let (first, second) = (connection.slot().unwrap(), connection.slot().unwrap());
    assert!(connection.slot().is_none());
    let answered =
        tokio::spawn(async move { first.send(request(), Some(rule(LEASE))).await.is_ok() });
    assert_eq!(peer.request().await, Some(1));
    peer.limit(1).await;
    while connection.slots.limit() != 1 {
        tokio::task::yield_now().await;
    }
    (peer, answered, second)
}

#[tokio::test]
async fn a_request_that_is_given_up_in_the_librarys_queue_never_leaves() {
    let (mut peer, answered, slot) = lowered().await;
    let rule = rule(LEASE);
    let mut sending = Box::pin(slot.send(request(), Some(rule.clone())));
    assert!(sending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(rule.revoke(), "no byte was sent");
    drop(sending);
    // Without the gate, the library would send the queued request now.
    peer.answer(1).await;
    assert_eq!(peer.request().await, None, "the connection ends");
    drop(answered);
}

#[tokio::test]
async fn a_request_with_a_claim_that_became_too_old_in_the_librarys_queue_never_leaves() {
    let (mut peer, _answered, slot) = lowered().await;
    let sending = tokio::spawn(slot.send(request(), Some(rule(Duration::ZERO))));
    peer.answer(1).await;
    assert_eq!(peer.request().await, None, "the connection ends");
    assert!(matches!(sending.await.unwrap(), Err(SendFailure::Failed(ForwardError::NeverSent(_)))));
}

#[tokio::test]
async fn a_request_in_the_librarys_queue_leaves_when_a_slot_is_free() {
    let (mut peer, answered, slot) = lowered().await;
    let second = tokio::spawn(async move { slot.send(request(), Some(rule(LEASE))).await.is_ok() });
    peer.answer(1).await;
    assert!(answered.await.unwrap());
    assert_eq!(peer.request().await, Some(3));
    peer.answer(3).await;
    assert!(second.await.unwrap());
}

#[tokio::test]
async fn a_goaway_takes_a_request_out_of_the_librarys_queue_and_those_below_it_are_answered() {
    let (mut peer, answered, slot) = lowered().await;
    let mut queued = Box::pin(slot.send(request(), Some(rule(LEASE))));
    assert!(queued.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    peer.write_frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]).await;
    assert!(matches!(queued.await, Err(SendFailure::Failed(ForwardError::NeverSent(_)))));
    peer.answer(1).await;
    assert!(answered.await.unwrap(), "the connection stays open for it");
}

#[tokio::test]
async fn an_unused_connection_closes() {
    let (mut peer, connection) = connected().await;
    drop(connection);
    assert_eq!(peer.request().await, None);
}
