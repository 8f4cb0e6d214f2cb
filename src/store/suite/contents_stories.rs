//! Stories of the contents of the outbox.
#![allow(missing_docs)]

use bytes::Bytes;

use super::outbox_stories::{
    LEDGER, MAIL, RELAY, SECOND_ROUND, announced, assert_backlog, burial, buried, due, event, key,
    owned, waiting,
};
use super::records::HERE;
use super::stage::Stage;
use crate::key::Slot;
use crate::store::dead_letters::{Burial, DeadLetterKind};
use crate::store::error::ListError;
use crate::store::outbox::{
    DeliveryAttempts, EventContent, EventKey, EventOrder, OutboxEvent, SinkBacklog,
};
use crate::store::outbox_contents::StoredContents;

fn plain(text: &'static str) -> EventContent {
    EventContent::Plain(Bytes::from_static(text.as_bytes()))
}

/// Returns the contents of these operations. Checks that no page has many.
async fn contents_of(stage: &Stage, slots: &[Slot]) -> Vec<StoredContents> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = stage.store.contents.contents(cursor.as_deref()).await.unwrap();
        assert!(page.contents.len() <= 2000, "{}", page.contents.len());
        found.extend(page.contents);
        let Some(next) = page.cursor else { break };
        cursor = Some(next);
    }
    found.retain(|one| slots.contains(&one.key.slot));
    found
}

async fn replaced(stage: &Stage, before: &StoredContents, after: &StoredContents) -> bool {
    stage.store.contents.replace_contents(before, after).await.unwrap()
}

pub async fn contents_of_a_waiting_event_are_replaced_and_nothing_else_of_it(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let events = [event(LEDGER, 7), event(LEDGER, 8), event(MAIL, 7)];
    announced(&stage, &here, &events).await;
    let attempts = DeliveryAttempts { count: 3, first_ms: 5 };
    let first = key(here, &events[0]);
    let now = std::time::Duration::ZERO;
    assert!(stage.store.outbox.postpone(RELAY, &first, 0, attempts, now).await.unwrap());

    let found = contents_of(&stage, &[here]).await;
    let before = found.iter().find(|one| one.key == first).unwrap().clone();
    assert_eq!((found.len(), &before.report), (3, &None));
    let content = plain("sealed under a key with a longer name than before");
    let after = StoredContents { content: content.clone(), ..before.clone() };
    assert!(replaced(&stage, &before, &after).await);
    assert!(!replaced(&stage, &before, &after).await, "it has other contents now");

    let event_now = due(&stage, &here, LEDGER).await.events.remove(0);
    assert_eq!((event_now.key, event_now.content), (first.clone(), content.clone()));
    assert_eq!((event_now.attempts, event_now.round), (attempts, 0));
    let again = contents_of(&stage, &[here]).await;
    let others = |all: &[StoredContents]| {
        let mut others: Vec<_> = all.iter().filter(|one| one.key != first).cloned().collect();
        others.sort_by(|left, right| left.key.cmp(&right.key));
        others
    };
    assert_eq!(others(&again), others(&found));
    let bytes = content.size() + events[1].content.size();
    assert_backlog(&stage, &here, waiting(&stage, &here, LEDGER, 2, bytes)).await;

    assert!(stage.store.outbox.remove(RELAY, &first, 0).await.unwrap());
    assert!(!replaced(&stage, &after, &before).await, "a delivered event does not come back");
    assert_eq!(contents_of(&stage, &[here]).await.len(), 2);
}

pub async fn contents_of_a_dead_letter_are_replaced_unless_it_was_buried_again(stage: Stage) {
    let here = HERE(1);
    owned(&stage, &here, RELAY).await;
    let event = event(LEDGER, 7);
    announced(&stage, &here, std::slice::from_ref(&event)).await;
    let waits = contents_of(&stage, &[here]).await.remove(0);
    let id = buried(&stage, here, &event, &burial(DeadLetterKind::Receiver)).await;
    let next = StoredContents { content: plain("x"), ..waits.clone() };
    assert!(!replaced(&stage, &waits, &next).await, "it waits no more");

    let before = contents_of(&stage, &[here]).await.remove(0);
    assert!(before.key == waits.key && before.report.is_some(), "{before:?}");
    let (content, report) = (plain("another content"), plain("a report"));
    let after = StoredContents { content, report: Some(report.clone()), ..before.clone() };
    assert!(replaced(&stage, &before, &after).await);
    assert!(!replaced(&stage, &before, &after).await);
    let letter = stage.store.dead_letters.dead_letter(id).await.unwrap().unwrap();
    let expected = Burial { kind: DeadLetterKind::Receiver, report };
    assert_eq!((&letter.content, &letter.burial), (&after.content, &expected));
    let expected = SinkBacklog {
        dead_by_receiver: 1,
        ..waiting(&stage, &here, LEDGER, 0, after.content.size())
    };
    assert_backlog(&stage, &here, expected).await;

    assert!(stage.store.dead_letters.requeue(id, SECOND_ROUND).await.unwrap());
    assert!(!replaced(&stage, &after, &before).await, "it waits");
    let again = Burial { report: plain("refused again"), kind: DeadLetterKind::Gateway };
    assert_eq!(buried(&stage, here, &event, &again).await, id);
    assert!(!replaced(&stage, &after, &before).await, "its report would be lost");
    assert!(stage.store.dead_letters.discard(id).await.unwrap());
    assert!(!replaced(&stage, &after, &before).await);
    assert_eq!(contents_of(&stage, &[here]).await, []);
}

pub async fn a_listing_of_contents_pages_through_all_of_them(stage: Stage) {
    const EACH: u8 = 200;
    let slots: Vec<Slot> = (1..=6).map(HERE).collect();
    let mut expected: Vec<EventKey> = Vec::new();
    for slot in &slots {
        owned(&stage, slot, RELAY).await;
        let events: Vec<OutboxEvent> = (0..EACH)
            .map(|number| OutboxEvent {
                order: EventOrder { opened_unix_ms: 1000, version: 7, number },
                ..event(if number % 2 == 0 { LEDGER } else { MAIL }, 7)
            })
            .collect();
        announced(&stage, slot, &events).await;
        buried(&stage, *slot, &events[0], &burial(DeadLetterKind::Receiver)).await;
        expected.extend(events.iter().map(|event| key(*slot, event)));
    }
    let found = contents_of(&stage, &slots).await;
    let dead = found.iter().filter(|one| one.report.is_some()).count();
    let mut found: Vec<EventKey> = found.into_iter().map(|one| one.key).collect();
    found.sort_unstable();
    found.dedup();
    expected.sort_unstable();
    assert!(found == expected, "{} of {}", found.len(), expected.len());
    assert_eq!(dead, slots.len());
    let odd = stage.store.contents.contents(Some("odd")).await;
    assert!(matches!(odd, Err(ListError::Cursor)), "{odd:?}");
}
