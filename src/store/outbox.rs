//! The part of a store that keeps the outbox: events that wait until their sinks have them.
//!
//! [`Records::write`](super::Records::write) writes an event in the same step as its record. So an
//! event exists exactly if its change does. [`Outbox`] is the other side: the relay of a gateway
//! reads events, delivers them, and removes them.
//!
//! A relay owns whole partitions. Each change that it makes names its fence, and changes nothing
//! once another relay owns the partition: a relay that was paused can't remove, postpone or bury an
//! event that its successor is delivering. A change also names the round of the event, and changes
//! nothing in another round: a call that is carried out late can't end a round without an attempt.
//!
//! An event that can't be delivered becomes a dead letter: see [`DeadLetters`](super::DeadLetters).

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use super::error::StoreError;
use crate::key::Slot;

/// Wake-ups that a store keeps for a relay that is busy. A relay that missed some reads all
/// backlogs.
pub(super) const WAKES_KEPT: usize = 1024;

/// An event for one sink, as a change writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEvent {
    /// The name of the sink.
    pub sink: String,
    /// The place among the events of its operation.
    pub order: EventOrder,
    /// The content, which the store does not read.
    pub content: EventContent,
}

/// The content of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventContent {
    /// Readable.
    Plain(Bytes),
    /// Sealed. Above the store it means that the key is missing.
    Sealed(Bytes),
}

/// The place of an event among the events of its operation for one sink: events are delivered in
/// this order.
///
/// Danger: it is not the order of arrival. After a loss a store writes an earlier event again,
/// behind a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventOrder {
    /// When the operation began, in ms since 1970 by its gateway's clock. Two operations of one
    /// slot have unrelated versions.
    pub opened_unix_ms: u64,
    /// The version that the change wrote.
    pub version: u64,
    /// The number of the event among those of its change.
    pub number: u8,
}

/// Names an event in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// The name of the sink.
    pub sink: String,
    /// The operation.
    pub slot: Slot,
    /// The place among the operation's events.
    pub order: EventOrder,
}

/// The attempts to deliver an event, in its present round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryAttempts {
    /// Number of attempts that began.
    pub count: u32,
    /// Time of the first one, in ms since 1970 by the store's clock; 0 before it.
    pub first_ms: u64,
}

/// An event that waits for its sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingEvent {
    /// Its name.
    pub key: EventKey,
    /// Its content.
    pub content: EventContent,
    /// Time of the change, in ms since 1970 by the store's clock.
    pub written_ms: u64,
    /// Number of times that it was requeued.
    pub round: u32,
    /// The attempts so far.
    pub attempts: DeliveryAttempts,
}

/// The events of a sink in one partition that may be attempted now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DueEvents {
    /// At most one event of each operation: the first that waits.
    pub events: Vec<WaitingEvent>,
    /// When the next one is due, in ms since 1970 by the store's clock; `None` if none waits.
    pub next_due_ms: Option<u64>,
    /// The store's time at this read.
    pub now_ms: u64,
}

/// The events of one sink in one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkBacklog {
    /// The partition.
    pub partition: u16,
    /// The name of the sink.
    pub sink: String,
    /// Number of waiting events.
    pub waiting: u64,
    /// Number of dead letters of kind `receiver`.
    pub dead_by_receiver: u64,
    /// Number of dead letters of kind `gateway`.
    pub dead_by_gateway: u64,
    /// Bytes of the contents of waiting events and dead letters.
    pub bytes: u64,
}

/// An event was written, or is due again. Not every change has its own wake-up: a relay also reads
/// at the time that [`DueEvents::next_due_ms`] names.
///
/// The partition [`OutboxWake::LEFT`] means that a relay left: the others attend at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxWake {
    /// The partition of the event.
    pub partition: u16,
    /// The name of the sink.
    pub sink: String,
}

/// Why an event became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeadLetterKind {
    /// The receiver refused it, or did not take it in time.
    Receiver,
    /// The gateway can't send it.
    Gateway,
}

/// The part of a dead letter that its burial adds to the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burial {
    /// Why it is buried.
    pub kind: DeadLetterKind,
    /// The attempts and the last answer, which the store does not read.
    pub report: EventContent,
}

/// Random id of a relay. A call with a fence that does not own the partition changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayFence(pub u64);

/// Keeps the events that wait for their sinks.
///
/// Every change is idempotent: a repeated call finds nothing left to change.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Returns the number of partitions: 1 in a store of one process, because one relay delivers
    /// its events.
    fn partition_count(&self) -> u16;

    /// Returns the partition of an operation's events.
    fn partition_of(&self, slot: &Slot) -> u16 {
        slot.partition() % self.partition_count().max(1)
    }

    /// Keeps a relay among the relays of the store for the time of `lease`. Returns all of them, in
    /// order.
    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError>;

    /// Removes a relay from the relays of the store. It owns its partitions until others take them.
    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError>;

    /// Makes `fence` the owner of a partition, if its owner is `over` (`None`: if it has none).
    /// Returns whether `fence` owns the partition now.
    async fn own_partition(
        &self,
        partition: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError>;

    /// Returns the owners of all partitions, by partition.
    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError>;

    /// Returns up to `limit` events of a sink that are due. Events that wait longest come first.
    async fn due_events(
        &self,
        partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError>;

    /// Stores the attempts of an event, and that its next attempt is due after `pause`. Until then
    /// no event of its operation is due for that sink. Returns whether the event still waits in
    /// this round and `fence` owns its partition.
    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError>;

    /// Replaces the content of an event that waits in this round: the relay keeps its own state of
    /// a delivery there. Returns whether the event waits so, and `fence` owns its partition.
    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError>;

    /// Removes an event that was delivered in this round. The next event of its operation is due at
    /// once. Returns whether `fence` owns the partition.
    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError>;

    /// Makes an event that waits in this round a dead letter, in one step. The next event of its
    /// operation is due at once. Returns whether `fence` owns the partition.
    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError>;

    /// Counts the events of each sink in each partition that has some.
    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError>;

    /// Returns the time of the change of a sink's oldest waiting event in these partitions, in ms
    /// since 1970 by the store's clock.
    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError>;

    /// Returns the events of an operation that wait for a sink, in their order.
    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError>;

    /// Returns the wake-ups for relays.
    fn wakes(&self) -> broadcast::Receiver<OutboxWake>;
}

impl OutboxWake {
    /// The partition of a wake-up about a relay that left. No event has it.
    pub const LEFT: u16 = u16::MAX;
}

impl EventContent {
    const PLAIN: u8 = 0;
    const SEALED: u8 = 1;

    /// Returns the number of bytes of the encoded content.
    pub fn size(&self) -> usize {
        let (EventContent::Plain(bytes) | EventContent::Sealed(bytes)) = self;
        1 + bytes.len()
    }

    /// Encodes the content.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            EventContent::Plain(bytes) => [&[EventContent::PLAIN], &bytes[..]].concat(),
            EventContent::Sealed(bytes) => [&[EventContent::SEALED], &bytes[..]].concat(),
        }
    }

    /// Decodes the output of [`EventContent::encode`]. Any other bytes count as sealed, so that
    /// they are never delivered.
    pub fn decode(bytes: &[u8]) -> EventContent {
        match bytes.split_first() {
            Some((&EventContent::PLAIN, content)) => {
                EventContent::Plain(Bytes::copy_from_slice(content))
            }
            Some((_, content)) => EventContent::Sealed(Bytes::copy_from_slice(content)),
            None => EventContent::Sealed(Bytes::new()),
        }
    }
}

impl EventOrder {
    /// Bytes of an encoded order.
    pub const BYTES: usize = 17;

    /// Encodes the order. Encoded orders compare as orders do.
    pub fn encode(self) -> [u8; EventOrder::BYTES] {
        let mut bytes = [0; EventOrder::BYTES];
        bytes[..8].copy_from_slice(&self.opened_unix_ms.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.version.to_be_bytes());
        bytes[16] = self.number;
        bytes
    }

    /// Decodes the output of [`EventOrder::encode`].
    pub fn decode(bytes: &[u8; EventOrder::BYTES]) -> EventOrder {
        let number = |from: usize| {
            bytes.iter().skip(from).take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        EventOrder { opened_unix_ms: number(0), version: number(8), number: bytes[16] }
    }
}

impl DeadLetterKind {
    /// Returns the kind as APIs and commands name it.
    pub fn name(self) -> &'static str {
        match self {
            DeadLetterKind::Receiver => "receiver",
            DeadLetterKind::Gateway => "gateway",
        }
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<DeadLetterKind> {
        [DeadLetterKind::Receiver, DeadLetterKind::Gateway]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {} for {}", self.slot, self.order.version, self.sink)
    }
}
