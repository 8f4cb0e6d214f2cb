//! The part of a store that keeps dead letters: events that their sinks did not take. They are kept
//! until somebody requeues or discards them.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use ring::digest::{Context, SHA256};

use super::error::StoreError;
use super::log::member;
pub use super::outbox::{Burial, DeadLetterKind};
use super::outbox::{EventContent, EventKey};
use crate::hex;
use crate::key::Slot;

/// Most dead letters that one call examines. A page of a filtered listing can have fewer.
pub const DEAD_LETTERS_EXAMINED_MAX: usize = 1000;

/// The id of a dead letter. An event that is buried again for the same sink gets the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId([u8; DeadLetterId::BYTES]);

/// A text that is not the id of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is not the id of a dead letter: an id is `dl_` and 32 hexadecimal digits")]
pub struct MalformedDeadLetterId;

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its event.
    pub key: EventKey,
    /// The content of the event.
    pub content: EventContent,
    /// Time of the change, in ms since 1970 by the store's clock.
    pub written_ms: u64,
    /// Number of times that the event was requeued.
    pub round: u32,
    /// Time of the burial, in ms since 1970 by the store's clock.
    pub buried_ms: u64,
    /// Why it was buried.
    pub burial: Burial,
}

/// The round of a dead letter, and its round when it waits again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundChange {
    /// The round that the dead letter has.
    pub from: u32,
    /// The round of the waiting event.
    pub to: u32,
}

/// The dead letters of a listing. `None` does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// The name of the sink.
    pub sink: Option<String>,
    /// The operation.
    pub operation: Option<Slot>,
    /// The kind.
    pub kind: Option<DeadLetterKind>,
    /// Earliest time of the burial, in ms since 1970.
    pub since_ms: Option<u64>,
    /// Time before which it was buried, in ms since 1970.
    pub until_ms: Option<u64>,
}

/// A page of a listing of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// The dead letters, latest burial first.
    pub letters: Vec<DeadLetter>,
    /// The place to continue; `None` at the end.
    pub cursor: Option<DeadLetterCursor>,
}

/// A place in a listing: the listing continues behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadLetterCursor {
    /// Time of a burial, in ms since 1970.
    pub buried_ms: u64,
    /// The id of the dead letter.
    pub id: DeadLetterId,
}

/// Keeps dead letters. Events become dead letters by [`Outbox::bury`](super::Outbox::bury).
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// Lists up to `limit` dead letters, latest burial first, behind `cursor`. A page can have
    /// fewer and a cursor: one call examines at most [`DEAD_LETTERS_EXAMINED_MAX`].
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError>;

    /// Returns a dead letter.
    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError>;

    /// Makes a dead letter a waiting event again, without attempts. It is due at once. Returns
    /// whether the dead letter existed, in the round `round.from`.
    async fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError>;

    /// Removes a dead letter. Returns whether it existed.
    async fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError>;
}

impl RoundChange {
    /// Returns the change to the next round: receivers see another delivery.
    pub fn next(letter: &DeadLetter) -> RoundChange {
        RoundChange { from: letter.round, to: letter.round.saturating_add(1) }
    }

    /// Returns no change: the round of the dead letter goes on.
    pub fn same(letter: &DeadLetter) -> RoundChange {
        RoundChange { from: letter.round, to: letter.round }
    }
}

impl DeadLetterId {
    /// Bytes of an id: the partition of its operation (2), and the beginning of a digest.
    const BYTES: usize = 16;
    /// The first characters of an id.
    const PREFIX: &str = "dl_";

    /// Returns the id of an event's dead letter. It is the same in all kinds of stores, so that it
    /// stays when a store is copied.
    pub fn of(event: &EventKey) -> DeadLetterId {
        let mut digest = Context::new(&SHA256);
        digest.update(&member(&event.slot));
        digest.update(&event.order.encode());
        digest.update(event.sink.as_bytes());
        let digest = digest.finish();
        let mut id = [0; DeadLetterId::BYTES];
        for (byte, value) in
            id.iter_mut().zip(event.slot.partition().to_be_bytes().iter().chain(digest.as_ref()))
        {
            *byte = *value;
        }
        DeadLetterId(id)
    }

    /// Returns the partition of the dead letter's operation, by
    /// [`Slot::partition`](crate::key::Slot::partition).
    pub fn partition(self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// Returns the bytes of the id.
    pub fn as_bytes(&self) -> &[u8; DeadLetterId::BYTES] {
        &self.0
    }

    /// Returns the id with these bytes.
    pub fn from_bytes(bytes: [u8; DeadLetterId::BYTES]) -> DeadLetterId {
        DeadLetterId(bytes)
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", DeadLetterId::PREFIX, hex::encode(&self.0))
    }
}

impl FromStr for DeadLetterId {
    type Err = MalformedDeadLetterId;

    fn from_str(text: &str) -> Result<DeadLetterId, MalformedDeadLetterId> {
        let digits = text.strip_prefix(DeadLetterId::PREFIX);
        digits.and_then(hex::decode).map(DeadLetterId).ok_or(MalformedDeadLetterId)
    }
}

impl DeadLetterFilter {
    /// Returns whether a listing has a dead letter.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        self.sink.as_ref().is_none_or(|sink| *sink == letter.key.sink)
            && self.operation.is_none_or(|operation| operation == letter.key.slot)
            && self.kind.is_none_or(|kind| kind == letter.burial.kind)
            && self.since_ms.is_none_or(|since_ms| letter.buried_ms >= since_ms)
            && self.until_ms.is_none_or(|until_ms| letter.buried_ms < until_ms)
    }
}
