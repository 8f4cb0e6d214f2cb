//! The outbox of a store in memory: one partition.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::after;
use crate::key::Slot;
use crate::store::dead_letters::{
    Burial, DEAD_LETTERS_EXAMINED_MAX, DeadLetter, DeadLetterCursor, DeadLetterFilter,
    DeadLetterId, DeadLetterKind, DeadLetterPage, RoundChange,
};
use crate::store::local_relays::PARTITION;
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, EventOrder, OutboxEvent, RelayFence,
    SinkBacklog, WaitingEvent,
};
use crate::store::outbox_contents::{ContentsPage, StoredContents};

/// The outbox. The store's lock guards it.
#[derive(Default)]
pub(super) struct WaitingEvents {
    owner: Option<RelayFence>,
    sinks: BTreeMap<String, SinkQueue>,
    dead: BTreeMap<DeadLetterCursor, DeadLetter>,
    /// The dead letters by id, with the times of their burial.
    dead_ids: BTreeMap<DeadLetterId, u64>,
}

/// A place among the contents: a page continues behind it.
pub(super) enum ContentsPlace {
    /// Behind a waiting event.
    Waiting(EventKey),
    /// Behind a dead letter; `None`: before the first one.
    Dead(Option<DeadLetterCursor>),
}

/// The waiting events of one sink.
#[derive(Default)]
struct SinkQueue {
    operations: BTreeMap<Slot, OperationQueue>,
    /// The operations by the time at which their first event is due.
    due: BTreeSet<(u64, Slot)>,
}

/// The events of one operation for one sink. Never empty.
struct OperationQueue {
    events: BTreeMap<EventOrder, QueuedEvent>,
    due_ms: u64,
}

struct QueuedEvent {
    content: EventContent,
    written_ms: u64,
    round: u32,
    attempts: DeliveryAttempts,
}

impl QueuedEvent {
    fn waiting(&self, key: EventKey) -> WaitingEvent {
        WaitingEvent {
            key,
            content: self.content.clone(),
            written_ms: self.written_ms,
            round: self.round,
            attempts: self.attempts,
        }
    }
}

impl WaitingEvents {
    pub fn append(&mut self, slot: &Slot, events: &[OutboxEvent], now_ms: u64) {
        for OutboxEvent { sink, order, content } in events {
            let event = QueuedEvent {
                content: content.clone(),
                written_ms: now_ms,
                round: 0,
                attempts: DeliveryAttempts::default(),
            };
            let key = EventKey { sink: sink.clone(), slot: *slot, order: *order };
            self.insert(key, event, now_ms);
        }
    }

    /// Adds an event. An event that waits already stays as it is.
    fn insert(&mut self, key: EventKey, event: QueuedEvent, now_ms: u64) {
        let queue = self.sinks.entry(key.sink).or_default();
        let operation = queue.operations.entry(key.slot).or_insert_with(|| {
            queue.due.insert((now_ms, key.slot));
            OperationQueue { events: BTreeMap::new(), due_ms: now_ms }
        });
        operation.events.entry(key.order).or_insert(event);
    }

    pub fn own(&mut self, fence: RelayFence, over: Option<RelayFence>) -> bool {
        if self.owner == over {
            self.owner = Some(fence);
        }
        self.owner == Some(fence)
    }

    pub fn owner(&self) -> Option<RelayFence> {
        self.owner
    }

    pub fn due(&self, sink: &str, limit: usize, now_ms: u64) -> DueEvents {
        let Some(queue) = self.sinks.get(sink) else {
            return DueEvents { now_ms, ..DueEvents::default() };
        };
        let is_due = |(due_ms, _): &&(u64, Slot)| *due_ms <= now_ms;
        let first = |(_, slot): &(u64, Slot)| {
            let operation = queue.operations.get(slot)?;
            let (order, event) = operation.events.first_key_value()?;
            Some(event.waiting(EventKey { sink: sink.to_owned(), slot: *slot, order: *order }))
        };
        let events: Vec<WaitingEvent> =
            queue.due.iter().take_while(is_due).take(limit).filter_map(first).collect();
        let next_due_ms = queue.due.iter().nth(events.len()).map(|(due_ms, _)| *due_ms);
        DueEvents { events, next_due_ms, now_ms }
    }

    pub fn postpone(
        &mut self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
        now_ms: u64,
    ) -> bool {
        if self.owner != Some(fence) {
            return false;
        }
        let Some(queue) = self.sinks.get_mut(&event.sink) else { return false };
        let Some(operation) = queue.operations.get_mut(&event.slot) else { return false };
        let waiting = operation.events.get_mut(&event.order);
        let Some(waiting) = waiting.filter(|waiting| waiting.round == round) else { return false };
        waiting.attempts = attempts;
        // An earlier event of the operation may have been written meanwhile. It is due first.
        if operation.events.first_key_value().is_some_and(|(order, _)| *order == event.order) {
            queue.due.remove(&(operation.due_ms, event.slot));
            operation.due_ms = after(now_ms, pause);
            queue.due.insert((operation.due_ms, event.slot));
        }
        true
    }

    pub fn replace_content(
        &mut self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> bool {
        if self.owner != Some(fence) {
            return false;
        }
        let operation =
            self.sinks.get_mut(&event.sink).and_then(|queue| queue.operations.get_mut(&event.slot));
        let waiting = operation.and_then(|operation| operation.events.get_mut(&event.order));
        let Some(waiting) = waiting.filter(|waiting| waiting.round == round) else { return false };
        waiting.content = content.clone();
        true
    }

    pub fn remove(&mut self, fence: RelayFence, event: &EventKey, round: u32, now_ms: u64) -> bool {
        if self.owner != Some(fence) {
            return false;
        }
        self.take(event, round, now_ms);
        true
    }

    pub fn bury(
        &mut self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
        now_ms: u64,
    ) -> bool {
        if self.owner != Some(fence) {
            return false;
        }
        let Some(QueuedEvent { content, written_ms, .. }) = self.take(event, round, now_ms) else {
            return true;
        };
        let letter = DeadLetter {
            key: event.clone(),
            content,
            written_ms,
            round,
            buried_ms: now_ms,
            burial: burial.clone(),
        };
        let id = DeadLetterId::of(event);
        self.dead.insert(DeadLetterCursor { buried_ms: now_ms, id }, letter);
        self.dead_ids.insert(id, now_ms);
        true
    }

    /// Removes an event that waits in this round. The next event of its operation is due at once.
    fn take(&mut self, event: &EventKey, round: u32, now_ms: u64) -> Option<QueuedEvent> {
        let queue = self.sinks.get_mut(&event.sink)?;
        let operation = queue.operations.get_mut(&event.slot)?;
        operation.events.get(&event.order).filter(|waiting| waiting.round == round)?;
        let taken = operation.events.remove(&event.order)?;
        queue.due.remove(&(operation.due_ms, event.slot));
        if operation.events.is_empty() {
            queue.operations.remove(&event.slot);
        } else {
            operation.due_ms = now_ms;
            queue.due.insert((now_ms, event.slot));
        }
        if queue.operations.is_empty() {
            self.sinks.remove(&event.sink);
        }
        Some(taken)
    }

    pub fn backlog(&self) -> Vec<SinkBacklog> {
        let mut counts: BTreeMap<&str, SinkBacklog> = BTreeMap::new();
        let of = |sink: &str| SinkBacklog {
            partition: PARTITION,
            sink: sink.to_owned(),
            ..SinkBacklog::default()
        };
        for (sink, queue) in &self.sinks {
            let count = counts.entry(sink).or_insert_with(|| of(sink));
            for event in queue.operations.values().flat_map(|operation| operation.events.values()) {
                count.waiting += 1;
                count.bytes += event.content.size() as u64;
            }
        }
        for letter in self.dead.values() {
            let sink = letter.key.sink.as_str();
            let count = counts.entry(sink).or_insert_with(|| of(sink));
            count.bytes += letter.content.size() as u64;
            match letter.burial.kind {
                DeadLetterKind::Receiver => count.dead_by_receiver += 1,
                DeadLetterKind::Gateway => count.dead_by_gateway += 1,
            }
        }
        counts.into_values().collect()
    }

    pub fn oldest_waiting_ms(&self, sink: &str) -> Option<u64> {
        let operations = self.sinks.get(sink)?.operations.values();
        let events = operations.flat_map(|operation| operation.events.values());
        events.map(|event| event.written_ms).min()
    }

    pub fn waiting_of(&self, sink: &str, slot: &Slot) -> Vec<WaitingEvent> {
        let operation = self.sinks.get(sink).and_then(|queue| queue.operations.get(slot));
        let events = operation.into_iter().flat_map(|operation| &operation.events);
        let key =
            |order: &EventOrder| EventKey { sink: sink.to_owned(), slot: *slot, order: *order };
        events.map(|(order, event)| event.waiting(key(order))).collect()
    }

    pub fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> DeadLetterPage {
        let behind = self.dead.iter().rev().filter(|(place, _)| cursor.is_none_or(|c| **place < c));
        let (mut letters, mut last) = (Vec::new(), None);
        for (examined, (place, letter)) in behind.enumerate() {
            if letters.len() >= limit || examined >= DEAD_LETTERS_EXAMINED_MAX {
                return DeadLetterPage { letters, cursor: last };
            }
            if filter.matches(letter) {
                letters.push(letter.clone());
            }
            last = Some(*place);
        }
        DeadLetterPage { letters, cursor: None }
    }

    pub fn dead_letter(&self, id: DeadLetterId) -> Option<DeadLetter> {
        let buried_ms = *self.dead_ids.get(&id)?;
        self.dead.get(&DeadLetterCursor { buried_ms, id }).cloned()
    }

    pub fn discard(&mut self, id: DeadLetterId) -> Option<DeadLetter> {
        let buried_ms = self.dead_ids.remove(&id)?;
        self.dead.remove(&DeadLetterCursor { buried_ms, id })
    }

    /// Returns a page of contents behind a place (`None`: from the beginning), and the next place.
    pub fn contents(&self, from: Option<ContentsPlace>) -> (ContentsPage, Option<ContentsPlace>) {
        let mut page = ContentsPage::default();
        let behind_dead = match from {
            Some(ContentsPlace::Dead(behind)) => behind,
            Some(ContentsPlace::Waiting(behind)) => {
                let next = self.add_waiting(&mut page, Some(behind));
                return (page, next);
            }
            None => {
                let next = self.add_waiting(&mut page, None);
                return (page, next);
            }
        };
        let range = (behind_dead.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        for (place, letter) in self.dead.range(range) {
            page.add(StoredContents {
                key: letter.key.clone(),
                content: letter.content.clone(),
                report: Some(letter.burial.report.clone()),
            });
            if page.is_full() {
                return (page, Some(ContentsPlace::Dead(Some(*place))));
            }
        }
        (page, None)
    }

    /// Adds waiting events behind a place. Returns the next place.
    fn add_waiting(
        &self,
        page: &mut ContentsPage,
        behind: Option<EventKey>,
    ) -> Option<ContentsPlace> {
        let sinks = match &behind {
            Some(behind) => self.sinks.range(behind.sink.clone()..),
            None => self.sinks.range::<String, _>(..),
        };
        for (sink, queue) in sinks {
            for (slot, operation) in &queue.operations {
                for (order, event) in &operation.events {
                    let key = EventKey { sink: sink.clone(), slot: *slot, order: *order };
                    if behind.as_ref().is_some_and(|behind| key <= *behind) {
                        continue;
                    }
                    let content = event.content.clone();
                    page.add(StoredContents { key: key.clone(), content, report: None });
                    if page.is_full() {
                        return Some(ContentsPlace::Waiting(key));
                    }
                }
            }
        }
        // The dead letters follow, in the next page.
        Some(ContentsPlace::Dead(None))
    }

    /// See [`crate::store::OutboxContents::replace_contents`].
    pub fn replace(&mut self, before: &StoredContents, after: &StoredContents) -> bool {
        let StoredContents { key, .. } = before;
        let (Some(report), Some(report_before)) = (&after.report, &before.report) else {
            let queue = self.sinks.get_mut(&key.sink);
            let operation = queue.and_then(|queue| queue.operations.get_mut(&key.slot));
            let event = operation.and_then(|operation| operation.events.get_mut(&key.order));
            let Some(event) = event.filter(|event| event.content == before.content) else {
                return false;
            };
            event.content = after.content.clone();
            return true;
        };
        let id = DeadLetterId::of(key);
        let place = self.dead_ids.get(&id).map(|buried_ms| (*buried_ms, id));
        let letter = place
            .and_then(|(buried_ms, id)| self.dead.get_mut(&DeadLetterCursor { buried_ms, id }));
        let letter = letter.filter(|letter| {
            letter.content == before.content && letter.burial.report == *report_before
        });
        let Some(letter) = letter else { return false };
        letter.content = after.content.clone();
        letter.burial.report = report.clone();
        true
    }

    /// Returns the key of the event that waits again.
    pub fn requeue(
        &mut self,
        id: DeadLetterId,
        change: RoundChange,
        now_ms: u64,
    ) -> Option<EventKey> {
        self.dead_letter(id).filter(|letter| letter.round == change.from)?;
        let DeadLetter { key, content, written_ms, .. } = self.discard(id)?;
        let attempts = DeliveryAttempts::default();
        let event = QueuedEvent { content, written_ms, round: change.to, attempts };
        self.insert(key.clone(), event, now_ms);
        Some(key)
    }
}
