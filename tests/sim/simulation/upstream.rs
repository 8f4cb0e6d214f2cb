//! The upstream: it executes, declines, is slow, breaks off, answers late, or executes when no
//! gateway waits any more.
//!
//! Under `forward` it deduplicates by itself, as that policy requires; otherwise it executes every
//! request.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body, Frame};
use onceward::engine::OnUncertain;
use onceward::gate::BoxError;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::checks::Known;
use super::history::Occurrence;
use super::plan::ANSWER_MAX;
use super::world::World;

/// A request that arrived completely.
pub struct Order {
    pub number: u64,
    pub key: usize,
    pub asker: usize,
}

/// The upstream's answer, in pieces.
pub struct Served {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Pieces,
}

/// A body that arrives in pieces, with pauses, and may break off.
pub struct Pieces {
    pieces: VecDeque<Result<Bytes, BoxError>>,
    pause: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let pieces = self.get_mut();
        if let Some((span, pause)) = &mut pieces.pause {
            ready!(pause.as_mut().poll(cx));
            *pause = Box::pin(sleep(*span));
        }
        Poll::Ready(pieces.pieces.pop_front().map(|piece| piece.map(Frame::data)))
    }
}

/// The fate of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Normal,
    /// Possibly slower than any gateway waits.
    Slow,
    /// It waits in a queue, and then succeeds.
    Queued,
    /// Its connection breaks, and it still waits in the queue.
    QueuedAndBroken,
    /// It is executed, and the connection breaks before the answer, or in it.
    Broken,
    BrokenInTheBody,
    Silent,
    /// It is lost.
    Dropped,
    /// It is executed, or not, and the answer does not show which.
    Unavailable,
    UnavailableWithoutActing,
    /// It was not executed, and a retry may run.
    TooMany,
    /// Results without an execution.
    Declined,
    Conflict,
    /// A result with an error status.
    Failed,
    /// A result that is too large to be kept.
    Large,
}

const TROUBLES: [(Fate, &str); 14] = [
    (Fate::Slow, "upstream: slow"),
    (Fate::Queued, "upstream: acts late"),
    (Fate::QueuedAndBroken, "upstream: breaks off, acts late"),
    (Fate::Broken, "upstream: acts, breaks off"),
    (Fate::BrokenInTheBody, "upstream: acts, breaks off in the body"),
    (Fate::Silent, "upstream: acts, never answers"),
    (Fate::Dropped, "upstream: loses the request"),
    (Fate::Unavailable, "upstream: acts, 503"),
    (Fate::UnavailableWithoutActing, "upstream: 503"),
    (Fate::TooMany, "upstream: 429"),
    (Fate::Declined, "upstream: 402"),
    (Fate::Conflict, "upstream: 409"),
    (Fate::Failed, "upstream: acts, 500"),
    (Fate::Large, "upstream: acts, large answer"),
];

impl World {
    fn fate_of_order(&self) -> (Fate, &'static str) {
        if self.is_calm() || !self.dice.chance(self.plan.rates.upstream) {
            return (Fate::Normal, "upstream: normal");
        }
        self.dice.pick(&TROUBLES)
    }

    /// Makes a copy of an answer. No two are equal.
    fn serve(&self, order: &Order, status: u16, size: usize) -> (Served, u64) {
        let copy = self.number();
        let mut body = format!("{} copy {copy} ", order.asker).into_bytes();
        body.resize(body.len().max(size), b'.');
        let body = Bytes::from(body);
        let mut headers = HeaderMap::new();
        headers.insert("x-copy", HeaderValue::from(copy));
        headers.insert(http::header::SET_COOKIE, HeaderValue::from(copy));
        if self.dice.chance(100) {
            headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        }
        let status = StatusCode::from_u16(status).unwrap();
        let cut = self.dice.below(body.len());
        let pause = if self.dice.chance(100) { Some(self.dice.span(1, 300)) } else { None };
        let pieces = VecDeque::from([Ok(body.slice(..cut)), Ok(body.slice(cut..))]);
        let pause = pause.map(|span| (span, Box::pin(sleep(span))));
        (Served { status, headers, body: Pieces { pieces, pause } }, copy)
    }

    /// Takes a request, executes it or not, and answers or not. The gateway's fate changes nothing
    /// here.
    pub async fn take(self: Arc<Self>, order: Order, reply: oneshot::Sender<Served>) {
        let (fate, name) = self.fate_of_order();
        self.count(name);
        self.note(None, Some(order.key), Occurrence::Received { order: order.number, fate: name });
        let mut reply = Some(reply);
        let limit = self.plan.response_timeout.as_millis() as u64;
        let work = match fate {
            Fate::Slow => self.dice.span(limit / 2, limit * 3 / 2),
            _ => self.dice.span(1, 400),
        };
        match fate {
            Fate::Dropped => return sleep(work).await,
            Fate::QueuedAndBroken => reply = None,
            _ => {}
        }
        if matches!(fate, Fate::Queued | Fate::QueuedAndBroken) {
            let queue = self.dice.span(1, self.plan.queue.as_millis() as u64);
            self.under_way(Instant::now() + queue + work);
            sleep(queue).await;
        }
        let (status, size) = self.act(&order, fate, work).await;
        if matches!(fate, Fate::Broken | Fate::QueuedAndBroken) {
            return;
        }
        let Some(reply) = reply else { return };
        if fate == Fate::Silent {
            // The connection stays open without an answer.
            let _open = reply;
            return std::future::pending().await;
        }
        let (mut served, copy) = self.serve(&order, status, size);
        if fate == Fate::BrokenInTheBody {
            served.body.pieces.pop_back();
            served.body.pieces.push_back(Err("the connection broke".into()));
        }
        self.note(
            None,
            Some(order.key),
            Occurrence::Served { order: order.number, status, copy: Some(copy) },
        );
        let _ = reply.send(served);
    }

    /// Executes the request, or not. Returns the status of the answer and its minimum size.
    async fn act(&self, order: &Order, fate: Fate, work: Duration) -> (u16, usize) {
        let deduplicates = matches!(self.plan.policy.on_uncertain, OnUncertain::Forward);
        let known = self.book().operations[order.key].known[order.asker];
        let status = match fate {
            Fate::UnavailableWithoutActing => 503,
            Fate::TooMany => 429,
            Fate::Declined | Fate::Conflict if deduplicates && known != Known::Nothing => 409,
            Fate::Declined => 402,
            Fate::Conflict => 409,
            _ => {
                return match known {
                    Known::Acted(status) if deduplicates => (status, 0),
                    Known::Acts if deduplicates => (409, 0),
                    _ => self.charge(order, fate, work).await,
                };
            }
        };
        sleep(work).await;
        (status, 0)
    }

    async fn charge(&self, order: &Order, fate: Fate, work: Duration) -> (u16, usize) {
        let remember = |known| self.book().operations[order.key].known[order.asker] = known;
        remember(Known::Acts);
        self.charges(order.key, order.number, order.asker);
        sleep(work).await;
        // It remembers a definite status, not that it was unavailable at the time.
        let result = if fate == Fate::Failed { 500 } else { 201 };
        remember(Known::Acted(result));
        let size = if fate == Fate::Large { ANSWER_MAX + 1 } else { 0 };
        (if fate == Fate::Unavailable { 503 } else { result }, size)
    }

    /// Answers a probe about an operation.
    pub async fn look_up(&self, key: usize, asker: Option<usize>) -> Option<Served> {
        let troubled = !self.is_calm() && self.dice.chance(self.plan.rates.upstream);
        let slow = self.plan.response_timeout.as_millis() as u64;
        let fate = if troubled { self.dice.below(4) } else { 9 };
        if fate == 0 {
            sleep(self.dice.span(1, slow)).await;
        }
        let found = self.known(key, asker);
        self.note(None, Some(key), Occurrence::Probed { found: found.is_some() });
        // The lookup is done, and the answer takes time.
        sleep(if fate == 1 { self.dice.span(1, slow * 3 / 2) } else { self.dice.span(1, 20) })
            .await;
        let order = |asker| Order { number: 0, key, asker };
        match (fate, found) {
            (2, _) => None,
            (3, _) => Some(self.serve(&order(0), 500, 0).0),
            (_, Some(asker)) => Some(self.serve(&order(asker), 200, 0).0),
            (_, None) => Some(self.serve(&order(0), 404, 0).0),
        }
    }

    /// Returns the asker with an operation under this key that the upstream has executed or begun.
    /// `asker` limits it to one of them.
    pub fn known(&self, key: usize, asker: Option<usize>) -> Option<usize> {
        let known = self.book().operations[key].known;
        (0..known.len())
            .find(|one| asker.is_none_or(|asker| asker == *one) && known[*one] != Known::Nothing)
    }
}
