//! Stories of the outbox.
#![allow(missing_docs)]

use std::collections::BTreeSet;

use bytes::Bytes;

use super::records::{HERE, LONG, SHORT, claim, completed, keep, lease, uncertain};
use super::stage::Stage;
use crate::key::Slot;
use crate::record::{Lifetime, Record, Version};
use crate::store::dead_letters::{
    Burial, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterKind, RoundChange,
};
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, EventOrder, OutboxEvent, OutboxWake,
    RelayFence, SinkBacklog, WaitingEvent,
};
use crate::store::records::{Events, Swap};

pub(super) const LEDGER: &str = "ledger";
pub(super) const MAIL: &str = "mail";
pub(super) const RELAY: RelayFence = RelayFence(1);
pub(super) const SECOND_ROUND: RoundChange = RoundChange { from: 0, to: 1 };
/// More events than any story writes.
const MANY: usize = 100;

/// An event about the change of an operation to `version`.
pub(super) fn event(sink: &str, version: u64) -> OutboxEvent {
    let order = EventOrder { opened_unix_ms: 1000, version, number: 0 };
    let content = EventContent::Plain(Bytes::from(format!("version {version} for {sink}")));
    OutboxEvent { sink: sink.into(), order, content }
}

pub(super) fn key(slot: Slot, event: &OutboxEvent) -> EventKey {
    EventKey { sink: event.sink.clone(), slot, order: event.order }
}

pub(super) async fn written(
    stage: &Stage,
    slot: &Slot,
    expected: Option<u64>,
    next: &Record,
    lifetime: Lifetime,
    outbox: &[OutboxEvent],
) -> Swap {
    let events = Events { outbox, ..Events::NONE };
    let expected = expected.map(Version);
    stage.store.records.write(slot, expected, next, lifetime, events).await.unwrap()
}

/// Writes a completed record over nothing, with these events.
pub(super) async fn announced(stage: &Stage, slot: &Slot, outbox: &[OutboxEvent]) {
    let record = completed(outbox.first().map_or(1, |event| event.order.version));
    assert_eq!(written(stage, slot, None, &record, keep(LONG), outbox).await, Swap::Stored);
}

fn partition(stage: &Stage, slot: &Slot) -> u16 {
    stage.store.outbox.partition_of(slot)
}

pub(super) async fn due(stage: &Stage, slot: &Slot, sink: &str) -> DueEvents {
    stage.store.outbox.due_events(partition(stage, slot), sink, MANY).await.unwrap()
}

/// Returns the events of these operations that are due. A store may keep others of the partition.
pub(super) async fn due_keys(stage: &Stage, slot: &Slot, sink: &str) -> Vec<EventKey> {
    due(stage, slot, sink).await.events.into_iter().map(|event| event.key).collect()
}

async fn owner(stage: &Stage, slot: &Slot) -> Option<RelayFence> {
    let owners = stage.store.outbox.partition_owners().await.unwrap();
    assert_eq!(owners.len(), usize::from(stage.store.outbox.partition_count()));
    owners[usize::from(partition(stage, slot))]
}

pub(super) async fn owned(stage: &Stage, slot: &Slot, fence: RelayFence) {
    let before = owner(stage, slot).await;
    let outbox = &stage.store.outbox;
    assert!(outbox.own_partition(partition(stage, slot), fence, before).await.unwrap());
}

/// Returns the counts of a sink in the partition of an operation.
pub(super) async fn backlog(stage: &Stage, slot: &Slot, sink: &str) -> SinkBacklog {
    let partition = partition(stage, slot);
    let all = stage.store.outbox.backlog().await.unwrap();
    let found = all.into_iter().find(|one| one.sink == sink && one.partition == partition);
    found.unwrap_or(SinkBacklog { partition, sink: sink.into(), ..SinkBacklog::default() })
}

/// Compares the counts of a sink. A store may keep more bytes than the contents have.
pub(super) async fn assert_backlog(stage: &Stage, slot: &Slot, expected: SinkBacklog) {
    let found = backlog(stage, slot, &expected.sink).await;
    let none = expected.bytes == 0;
    assert!(if none { found.bytes == 0 } else { found.bytes >= expected.bytes }, "{found:?}");
    assert_eq!(SinkBacklog { bytes: expected.bytes, ..found }, expected);
}

/// Returns the counts of a partition with `waiting` events of some bytes.
pub(super) fn waiting(
    stage: &Stage,
    slot: &Slot,
    sink: &str,
    waiting: u64,
    bytes: usize,
) -> SinkBacklog {
    let (partition, sink, bytes) = (partition(stage, slot), sink.into(), bytes as u64);
    SinkBacklog { partition, sink, waiting, bytes, ..SinkBacklog::default() }
}

pub async fn an_event_for_a_sink_is_written_with_its_record(stage: Stage) {
    let events = [event(LEDGER, 8), event(MAIL, 8)];
    announced(&stage, &HERE(1), &events).await;
    let here = BTreeSet::from([partition(&stage, &HERE(1))]);
    for event in &events {
        let found = due(&stage, &HERE(1), &event.sink).await;
        let [found_event] = &found.events[..] else { panic!("one event, not {found:?}") };
        let expected = WaitingEvent {
            key: key(HERE(1), event),
            content: event.content.clone(),
            written_ms: found_event.written_ms,
            round: 0,
            attempts: DeliveryAttempts::default(),
        };
        assert_eq!(*found_event, expected);
        assert!(found.now_ms - found_event.written_ms < LONG.as_millis() as u64, "{found:?}");
        let expected = waiting(&stage, &HERE(1), &event.sink, 1, event.content.size());
        assert_backlog(&stage, &HERE(1), expected).await;
        let oldest = stage.store.outbox.oldest_waiting_ms(&event.sink, &here).await.unwrap();
        assert_eq!(oldest, Some(found_event.written_ms));
    }
    assert_eq!(stage.store.outbox.oldest_waiting_ms("other", &here).await.unwrap(), None);
    assert_eq!(due_keys(&stage, &HERE(1), "other").await, []);
}

pub async fn a_stale_write_writes_no_event_for_a_sink(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(5, 1), lease(LONG)).await;
    let swap =
        written(&stage, &HERE(1), Some(9), &completed(8), keep(LONG), &[event(LEDGER, 8)]).await;
    assert!(matches!(swap, Swap::Stale(_)), "{swap:?}");
    assert_eq!(due_keys(&stage, &HERE(1), LEDGER).await, []);
    assert_backlog(&stage, &HERE(1), waiting(&stage, &HERE(1), LEDGER, 0, 0)).await;
}

pub async fn a_repeated_write_brings_no_delivered_event_back(stage: Stage) {
    owned(&stage, &HERE(1), RELAY).await;
    let event = event(LEDGER, 8);
    for _ in 0..2 {
        announced(&stage, &HERE(1), std::slice::from_ref(&event)).await;
    }
    assert_eq!(due_keys(&stage, &HERE(1), LEDGER).await, [key(HERE(1), &event)]);
    assert_eq!(backlog(&stage, &HERE(1), LEDGER).await.waiting, 1);
    assert!(stage.store.outbox.remove(RELAY, &key(HERE(1), &event), 0).await.unwrap());
    announced(&stage, &HERE(1), std::slice::from_ref(&event)).await;
    assert_eq!(due_keys(&stage, &HERE(1), LEDGER).await, []);
    assert_backlog(&stage, &HERE(1), waiting(&stage, &HERE(1), LEDGER, 0, 0)).await;
}

pub async fn events_of_an_operation_are_due_one_after_the_other_in_order(stage: Stage) {
    owned(&stage, &HERE(1), RELAY).await;
    let events = [event(LEDGER, 7), event(LEDGER, 8), event(LEDGER, 9)];
    // The first one arrives last, as after a loss.
    let (first, later) = events.split_first().unwrap();
    let record = uncertain(7, 1);
    assert_eq!(written(&stage, &HERE(1), None, &record, lease(LONG), later).await, Swap::Stored);
    let again = [first.clone()];
    assert_eq!(
        written(&stage, &HERE(1), Some(7), &completed(8), keep(LONG), &again).await,
        Swap::Stored
    );
    for event in &events {
        let waiting = key(HERE(1), event);
        assert_eq!(due_keys(&stage, &HERE(1), LEDGER).await, std::slice::from_ref(&waiting));
        assert!(stage.store.outbox.remove(RELAY, &waiting, 0).await.unwrap());
    }
    assert_eq!(due(&stage, &HERE(1), LEDGER).await.next_due_ms, None);
}

pub async fn a_postponed_event_holds_back_its_own_operation_alone(stage: Stage) {
    let here = HERE(1);
    let there = same_partition(&here);
    owned(&stage, &here, RELAY).await;
    announced(&stage, &here, &[event(LEDGER, 7), event(MAIL, 7)]).await;
    let late = [event(LEDGER, 8)];
    written(&stage, &here, Some(7), &completed(8), keep(LONG), &late).await;
    let failed = key(here, &event(LEDGER, 7));
    let attempts = DeliveryAttempts { count: 3, first_ms: 1_800_000_000_000 };
    let outbox = &stage.store.outbox;
    assert!(outbox.postpone(RELAY, &failed, 0, attempts, LONG).await.unwrap());
    announced(&stage, &there, &[event(LEDGER, 7)]).await;
    let found = due(&stage, &here, LEDGER).await;
    let keys: Vec<_> = found.events.iter().map(|event| event.key.clone()).collect();
    assert_eq!(keys, [key(there, &event(LEDGER, 7))], "neither the event nor the one behind it");
    assert!(found.next_due_ms.is_some_and(|due_ms| due_ms > found.now_ms), "{found:?}");
    assert_eq!(due_keys(&stage, &here, MAIL).await.len(), 1, "another sink");
    assert!(outbox.postpone(RELAY, &failed, 0, attempts, SHORT).await.unwrap());
    stage.time.pass(SHORT * 2).await;
    let found = due(&stage, &here, LEDGER).await.events;
    let again = found.iter().find(|event| event.key == failed).unwrap();
    assert_eq!(again.attempts, attempts);
}

pub async fn a_relay_that_lost_its_partition_changes_nothing(stage: Stage) {
    owned(&stage, &HERE(1), RELAY).await;
    announced(&stage, &HERE(1), &[event(LEDGER, 7)]).await;
    let (outbox, waiting) = (&stage.store.outbox, key(HERE(1), &event(LEDGER, 7)));
    let partition = partition(&stage, &HERE(1));
    assert!(outbox.own_partition(partition, RelayFence(2), Some(RELAY)).await.unwrap());
    assert!(!outbox.own_partition(partition, RelayFence(3), Some(RELAY)).await.unwrap());
    assert_eq!(owner(&stage, &HERE(1)).await, Some(RelayFence(2)));
    let attempts = DeliveryAttempts { count: 1, first_ms: 5 };
    assert!(!outbox.postpone(RELAY, &waiting, 0, attempts, LONG).await.unwrap());
    assert!(!outbox.remove(RELAY, &waiting, 0).await.unwrap());
    let found = due(&stage, &HERE(1), LEDGER).await.events;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].attempts, DeliveryAttempts::default());
    assert!(outbox.remove(RelayFence(2), &waiting, 0).await.unwrap());
    assert!(outbox.remove(RelayFence(2), &waiting, 0).await.unwrap(), "it is gone, as demanded");
}

pub async fn an_event_that_is_written_late_is_due_first_and_has_its_own_attempts(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let (first, second) = (event(LEDGER, 7), event(LEDGER, 8));
    announced(&stage, &here, std::slice::from_ref(&second)).await;
    let late = std::slice::from_ref(&first);
    written(&stage, &here, Some(8), &completed(9), keep(LONG), late).await;
    // An attempt of the second event was under way meanwhile, and failed.
    let attempts = DeliveryAttempts { count: 1, first_ms: 5 };
    let outbox = &stage.store.outbox;
    assert!(outbox.postpone(RELAY, &key(here, &second), 0, attempts, LONG).await.unwrap());
    let found = due(&stage, &here, LEDGER).await.events;
    let found: Vec<_> = found.iter().map(|event| (&event.key, event.attempts)).collect();
    assert_eq!(found, [(&key(here, &first), DeliveryAttempts::default())]);
    assert!(outbox.remove(RELAY, &key(here, &first), 0).await.unwrap());
    let found = due(&stage, &here, LEDGER).await.events;
    let found: Vec<_> = found.iter().map(|event| (&event.key, event.attempts)).collect();
    assert_eq!(found, [(&key(here, &second), attempts)]);
}

pub async fn a_read_of_due_events_is_limited(stage: Stage) {
    let (here, there) = (HERE(1), same_partition(&HERE(1)));
    for slot in [&here, &there] {
        announced(&stage, slot, &[event(LEDGER, 7)]).await;
    }
    let outbox = &stage.store.outbox;
    let found = outbox.due_events(partition(&stage, &here), LEDGER, 1).await.unwrap();
    assert_eq!(found.events.len(), 1);
    assert!(found.next_due_ms.is_some_and(|due_ms| due_ms <= found.now_ms), "more are due");
}

pub async fn relays_attend_until_their_lease_ends_or_they_leave(stage: Stage) {
    let outbox = &stage.store.outbox;
    let (first, second, third) = (RelayFence(3), RelayFence(u64::MAX), RelayFence(5));
    assert_eq!(outbox.attend(second, LONG).await.unwrap(), [second]);
    assert_eq!(outbox.attend(third, SHORT).await.unwrap(), [third, second]);
    assert_eq!(outbox.attend(first, LONG).await.unwrap(), [first, third, second]);
    outbox.leave(first).await.unwrap();
    stage.time.pass(SHORT * 2).await;
    assert_eq!(outbox.attend(second, LONG).await.unwrap(), [second]);
}

pub async fn a_relay_is_woken_by_an_event(stage: Stage) {
    let mut wakes = stage.store.outbox.wakes();
    // Before that, nobody listens at the server.
    let patience = super::stage::PATIENCE;
    tokio::time::timeout(patience, async {
        loop {
            let version = 7 + stage
                .store
                .records
                .load(&HERE(1))
                .await
                .unwrap()
                .map_or(0, |held| held.record.version.0);
            let over = (version > 7).then(|| version - 7);
            let next = completed(version);
            written(&stage, &HERE(1), over, &next, keep(LONG), &[event(LEDGER, version)]).await;
            let wake = tokio::time::timeout(SHORT, wakes.recv()).await;
            let expected =
                OutboxWake { partition: partition(&stage, &HERE(1)), sink: LEDGER.into() };
            match wake {
                Ok(wake) => return assert_eq!(wake.unwrap(), expected),
                Err(_) => continue,
            }
        }
    })
    .await
    .unwrap();
}

/// Buries the event of an operation.
pub(super) async fn buried(
    stage: &Stage,
    slot: Slot,
    event: &OutboxEvent,
    burial: &Burial,
) -> DeadLetterId {
    let key = key(slot, event);
    let waiting = stage.store.outbox.waiting_of(&key.sink, &slot).await.unwrap();
    let round = waiting.iter().find(|waiting| waiting.key == key).unwrap().round;
    assert!(stage.store.outbox.bury(RELAY, &key, round, burial).await.unwrap());
    DeadLetterId::of(&key)
}

pub(super) fn burial(kind: DeadLetterKind) -> Burial {
    Burial { kind, report: EventContent::Plain(Bytes::from_static(b"refused")) }
}

pub async fn an_event_that_is_buried_is_a_dead_letter_and_waits_no_more(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let (first, second) = (event(LEDGER, 7), event(LEDGER, 8));
    announced(&stage, &here, &[first.clone(), second.clone()]).await;
    let before = due(&stage, &here, LEDGER).await.events;
    let burial = burial(DeadLetterKind::Receiver);
    let outbox = &stage.store.outbox;
    assert!(!outbox.bury(RelayFence(9), &key(here, &first), 0, &burial).await.unwrap());
    let id = buried(&stage, here, &first, &burial).await;
    assert_eq!(due_keys(&stage, &here, LEDGER).await, [key(here, &second)]);
    let letter = stage.store.dead_letters.dead_letter(id).await.unwrap().unwrap();
    let expected = DeadLetter {
        key: key(here, &first),
        content: first.content.clone(),
        written_ms: before[0].written_ms,
        round: 0,
        buried_ms: letter.buried_ms,
        burial: burial.clone(),
    };
    assert_eq!(letter, expected);
    assert!(letter.buried_ms >= letter.written_ms);
    let expected = SinkBacklog {
        dead_by_receiver: 1,
        ..waiting(&stage, &here, LEDGER, 1, first.content.size() + second.content.size())
    };
    assert_backlog(&stage, &here, expected.clone()).await;
    assert!(outbox.bury(RELAY, &key(here, &first), 0, &burial).await.unwrap(), "a repeated call");
    assert_backlog(&stage, &here, expected).await;
}

pub async fn a_dead_letter_is_requeued_in_a_new_round(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let event = event(LEDGER, 7);
    announced(&stage, &here, std::slice::from_ref(&event)).await;
    let attempts = DeliveryAttempts { count: 9, first_ms: 5 };
    assert!(
        stage.store.outbox.postpone(RELAY, &key(here, &event), 0, attempts, LONG).await.unwrap()
    );
    let id = buried(&stage, here, &event, &burial(DeadLetterKind::Gateway)).await;
    let dead_letters = &stage.store.dead_letters;
    assert_eq!(backlog(&stage, &here, LEDGER).await.dead_by_gateway, 1);
    let other_round = RoundChange { from: 1, to: 2 };
    assert!(!dead_letters.requeue(id, other_round).await.unwrap(), "it was read in another round");
    assert!(dead_letters.requeue(id, SECOND_ROUND).await.unwrap());
    assert!(!dead_letters.requeue(id, SECOND_ROUND).await.unwrap());
    assert_eq!(dead_letters.dead_letter(id).await.unwrap(), None);
    let found = due(&stage, &here, LEDGER).await.events;
    let [again] = &found[..] else { panic!("one event, not {found:?}") };
    let expected = (key(here, &event), event.content.clone(), 1, DeliveryAttempts::default());
    let again = again.clone();
    assert_eq!((again.key, again.content, again.round, again.attempts), expected);
    let waiting_of =
        async |sink: &str, slot: &Slot| stage.store.outbox.waiting_of(sink, slot).await.unwrap();
    assert_eq!(waiting_of(LEDGER, &here).await, found);
    assert_eq!(waiting_of(MAIL, &here).await, []);
    assert_eq!(waiting_of(LEDGER, &same_partition(&here)).await, []);
    let expected = waiting(&stage, &here, LEDGER, 1, event.content.size());
    assert_backlog(&stage, &here, expected).await;
    assert_eq!(buried(&stage, here, &event, &burial(DeadLetterKind::Receiver)).await, id);
    assert_eq!(dead_letters.dead_letter(id).await.unwrap().unwrap().round, 1);
    assert!(dead_letters.requeue(id, RoundChange { from: 1, to: 1 }).await.unwrap());
    let found = due(&stage, &here, LEDGER).await.events;
    assert_eq!(found.iter().map(|event| event.round).collect::<Vec<_>>(), [1], "the round goes on");
}

pub async fn only_the_owner_replaces_the_content_of_a_waiting_event(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let events = [event(LEDGER, 7), event(LEDGER, 8)];
    announced(&stage, &here, &events).await;
    let outbox = &stage.store.outbox;
    for (event, text) in events.iter().zip(["longer than it was before", "short"]) {
        let (key, content) = (key(here, event), EventContent::Plain(Bytes::from(text)));
        assert!(!outbox.replace_content(RelayFence(2), &key, 0, &content).await.unwrap());
        assert!(outbox.replace_content(RELAY, &key, 0, &content).await.unwrap());
    }
    let stored = outbox.waiting_of(LEDGER, &here).await.unwrap();
    let contents: Vec<_> = stored.iter().map(|event| event.content.clone()).collect();
    assert_eq!(
        contents,
        ["longer than it was before", "short"].map(|text| EventContent::Plain(Bytes::from(text)))
    );
    let bytes = contents.iter().map(EventContent::size).sum();
    assert_backlog(&stage, &here, waiting(&stage, &here, LEDGER, 2, bytes)).await;
    // The content goes with the event, and takes its bytes along.
    let id = buried(&stage, here, &events[0], &burial(DeadLetterKind::Gateway)).await;
    let letter = stage.store.dead_letters.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(letter.content, contents[0]);
    assert!(outbox.remove(RELAY, &key(here, &events[1]), 0).await.unwrap());
    assert!(stage.store.dead_letters.discard(id).await.unwrap());
    assert_backlog(&stage, &here, waiting(&stage, &here, LEDGER, 0, 0)).await;
    assert!(!outbox.replace_content(RELAY, &key(here, &events[0]), 0, &contents[0]).await.unwrap());
}

pub async fn a_call_for_an_earlier_round_changes_nothing(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let event = event(LEDGER, 7);
    announced(&stage, &here, std::slice::from_ref(&event)).await;
    let (key, burial) = (key(here, &event), burial(DeadLetterKind::Receiver));
    let id = buried(&stage, here, &event, &burial).await;
    assert!(stage.store.dead_letters.requeue(id, SECOND_ROUND).await.unwrap());
    let before = due(&stage, &here, LEDGER).await.events;
    // The calls of the first round are carried out late.
    let outbox = &stage.store.outbox;
    assert!(outbox.bury(RELAY, &key, 0, &burial).await.unwrap(), "the relay owns the partition");
    assert!(outbox.remove(RELAY, &key, 0).await.unwrap(), "the relay owns the partition");
    let attempts = DeliveryAttempts { count: 9, first_ms: 5 };
    assert!(!outbox.postpone(RELAY, &key, 0, attempts, LONG).await.unwrap());
    let other = EventContent::Plain(Bytes::from_static(b"other"));
    assert!(!outbox.replace_content(RELAY, &key, 0, &other).await.unwrap());
    assert_eq!(due(&stage, &here, LEDGER).await.events, before);
    assert_eq!(before[0].round, 1);
    let expected = waiting(&stage, &here, LEDGER, 1, event.content.size());
    assert_backlog(&stage, &here, expected).await;
    assert!(outbox.remove(RELAY, &key, 1).await.unwrap());
    assert_eq!(due_keys(&stage, &here, LEDGER).await, []);
}

pub async fn a_discarded_dead_letter_is_gone(stage: Stage) {
    owned(&stage, &HERE(1), RELAY).await;
    let event = event(LEDGER, 7);
    announced(&stage, &HERE(1), std::slice::from_ref(&event)).await;
    let id = buried(&stage, HERE(1), &event, &burial(DeadLetterKind::Receiver)).await;
    let dead_letters = &stage.store.dead_letters;
    assert!(dead_letters.discard(id).await.unwrap());
    assert!(!dead_letters.discard(id).await.unwrap());
    assert!(!dead_letters.requeue(id, SECOND_ROUND).await.unwrap());
    assert_eq!(dead_letters.dead_letter(id).await.unwrap(), None);
    let expected = waiting(&stage, &HERE(1), LEDGER, 0, 0);
    assert_backlog(&stage, &HERE(1), expected).await;
    assert_eq!(due_keys(&stage, &HERE(1), LEDGER).await, []);
}

pub async fn a_listing_of_dead_letters_pages_through_those_that_match(stage: Stage) {
    let mut ids = Vec::new();
    for n in 1..=5 {
        let sink = if n == 3 { MAIL } else { LEDGER };
        let kind = if n == 4 { DeadLetterKind::Gateway } else { DeadLetterKind::Receiver };
        owned(&stage, &HERE(n), RELAY).await;
        announced(&stage, &HERE(n), &[event(sink, 7)]).await;
        ids.push(buried(&stage, HERE(n), &event(sink, 7), &burial(kind)).await);
        stage.time.pass(SHORT).await;
    }
    let dead_letters = &stage.store.dead_letters;
    let ids_of = async |filter: DeadLetterFilter| {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = dead_letters.dead_letters(&filter, cursor, 2).await.unwrap();
            assert!(page.letters.len() <= 2);
            found.extend(page.letters.iter().map(|letter| DeadLetterId::of(&letter.key)));
            let Some(next) = page.cursor else { return found };
            cursor = Some(next);
        }
    };
    let newest_first = |numbers: &[usize]| numbers.iter().map(|n| ids[n - 1]).collect::<Vec<_>>();
    let all = DeadLetterFilter::default();
    assert_eq!(ids_of(all.clone()).await, newest_first(&[5, 4, 3, 2, 1]));
    let of_ledger = DeadLetterFilter { sink: Some(LEDGER.into()), ..all.clone() };
    assert_eq!(ids_of(of_ledger).await, newest_first(&[5, 4, 2, 1]));
    let by_receiver = DeadLetterFilter { kind: Some(DeadLetterKind::Receiver), ..all.clone() };
    assert_eq!(ids_of(by_receiver).await, newest_first(&[5, 3, 2, 1]));
    let of_second = DeadLetterFilter { operation: Some(HERE(2)), ..all.clone() };
    assert_eq!(ids_of(of_second).await, newest_first(&[2]));
    let third_ms = dead_letters.dead_letter(ids[2]).await.unwrap().unwrap().buried_ms;
    let since = DeadLetterFilter { since_ms: Some(third_ms), ..all.clone() };
    assert_eq!(ids_of(since).await, newest_first(&[5, 4, 3]));
    let until = DeadLetterFilter { until_ms: Some(third_ms), ..all };
    assert_eq!(ids_of(until).await, newest_first(&[2, 1]));
}

/// Returns another slot of the same partition.
fn same_partition(here: &Slot) -> Slot {
    let others = (1000..).map(HERE);
    others.into_iter().find(|slot| slot.partition() == here.partition()).unwrap_or(*here)
}
