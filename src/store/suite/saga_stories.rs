//! Stories of sagas, and of the bars that keep their steps from running.
#![allow(missing_docs)]

use std::time::Duration;

use bytes::Bytes;

use super::outbox_stories::{LEDGER, RELAY, due_keys, event, key, owned, written};
use super::records::{
    HERE, LONG, SHORT, claim, completed, keep, lease, marker, record, with_tombstone,
};
use super::stage::Stage;
use crate::key::Slot;
use crate::record::{
    Announcements, Fence, Lifetime, PrivateContent, Publication, Record, SagaPhase, State, Version,
};
use crate::store::outbox::OutboxEvent;
use crate::store::records::{Listing, Swap};

/// More than a store reads along with other answers, and as much as a saga may have.
const LARGE_BYTES: usize = 512 << 10;

fn saga(version: u64, fence: u64, phase: SagaPhase) -> Record {
    saga_with(version, fence, phase, Bytes::from_static(b"{\"log\":[]}"))
}

fn saga_with(version: u64, fence: u64, phase: SagaPhase, text: Bytes) -> Record {
    record(version, fence, State::Saga { phase, content: PrivateContent::Open(text) })
}

fn running(version: u64, fence: u64) -> Record {
    saga(version, fence, SagaPhase::Running)
}

fn barred(version: u64, fence: u64) -> Record {
    Record { fingerprint: None, caller: None, ..record(version, fence, State::Barred) }
}

impl Stage {
    async fn due_sagas(&self, limit: usize) -> Vec<Slot> {
        self.store.records.due_sagas(limit).await.unwrap().slots
    }

    async fn is_due_saga(&self, slot: &Slot) -> bool {
        self.due_sagas(100).await.contains(slot)
    }

    async fn is_left(&self, slot: &Slot) {
        self.until("the saga is due", async || self.is_due_saga(slot).await).await;
    }

    async fn renews(&self, slot: &Slot, fence: u64, lease: Duration) -> bool {
        self.store.records.renew(slot, Fence(fence), lease, LONG * 2).await.unwrap()
    }
}

pub async fn a_saga_goes_on_and_ends_in_the_slot_of_its_request(stage: Stage) {
    stage.stored(&HERE(1), None, &running(10, 1), lease(LONG)).await;
    let held = stage.stale(&HERE(1), None, &running(20, 2), lease(LONG)).await.unwrap();
    assert_eq!(held.record, running(10, 1), "a duplicate gets the saga");
    assert!(!held.lease_is_over());
    let undoing = saga(11, 1, SagaPhase::Compensating);
    stage.stored(&HERE(1), Some(10), &undoing, lease(LONG)).await;
    stage.stored(&HERE(1), Some(10), &undoing, lease(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, undoing);
    let late = stage.stale(&HERE(1), Some(10), &running(11, 2), lease(LONG)).await.unwrap();
    assert_eq!(late.record, undoing, "another owner has read an older version");
    stage.stored(&HERE(1), Some(11), &completed(12), keep(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, completed(12));
}

pub async fn a_saga_comes_back_as_it_was(stage: Stage) {
    let announcements = Announcements {
        source: "urn:onceward".into(),
        rules: Vec::new(),
        uncertain_announced: false,
        hops: 0,
        event_bytes: 64,
    };
    let publication = Some(Publication::Open(std::sync::Arc::new(announcements)));
    for (n, phase) in [(1, SagaPhase::Running), (2, SagaPhase::Compensating), (3, SagaPhase::Stuck)]
    {
        let written = Record { publication: publication.clone(), ..saga(10, 1, phase) };
        stage.stored(&HERE(n), None, &written, lease(LONG)).await;
        assert_eq!(stage.load(&HERE(n)).await.unwrap().record, written);
    }
    stage.stored(&HERE(4), None, &barred(10, 1), keep(LONG)).await;
    assert_eq!(stage.load(&HERE(4)).await.unwrap().record, barred(10, 1));
}

pub async fn a_saga_without_its_owner_is_due_among_the_sagas_alone(stage: Stage) {
    stage.stored(&HERE(1), None, &running(10, 1), lease(SHORT)).await;
    stage.stored(&HERE(2), None, &running(10, 1), lease(LONG)).await;
    stage.stored(&HERE(3), None, &claim(10, 1), lease(SHORT)).await;
    stage.is_left(&HERE(1)).await;
    assert!(stage.load(&HERE(1)).await.unwrap().lease_is_over());
    assert!(!stage.is_due_saga(&HERE(2)).await, "its lease runs");
    stage.until("the claim is due", async || stage.is_due(&HERE(3)).await).await;
    assert!(!stage.is_due_saga(&HERE(3)).await && !stage.is_due(&HERE(1)).await);
    assert!(stage.is_due_saga(&HERE(1)).await, "a look takes it from nobody");
}

pub async fn sagas_are_listed_apart_from_the_unsettled(stage: Stage) {
    for n in 1..=7 {
        stage.stored(&HERE(n), None, &running(10, 1), lease(LONG)).await;
    }
    stage.stored(&HERE(8), None, &claim(10, 1), lease(LONG)).await;
    stage.stored(&HERE(9), None, &barred(10, 1), keep(LONG)).await;
    stage.stored(&HERE(7), Some(10), &completed(11), keep(LONG)).await;
    let mut sagas: Vec<_> =
        stage.listed(Listing::Sagas, 2).await.into_iter().map(|(slot, _)| slot).collect();
    sagas.sort();
    let mut expected: Vec<_> = (1..=6).map(HERE).collect();
    expected.sort();
    assert_eq!(sagas, expected);
    let unsettled = stage.listed(Listing::Unsettled, 100).await;
    assert_eq!(unsettled.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [HERE(8)]);
    assert_eq!(stage.listed(Listing::All, 100).await.len(), 9);
}

pub async fn only_the_owner_of_a_saga_renews_and_only_in_time(stage: Stage) {
    stage.stored(&HERE(1), None, &running(10, 1), lease(LONG)).await;
    assert!(!stage.renews(&HERE(1), 2, LONG).await);
    assert!(stage.renews(&HERE(1), 1, SHORT).await);
    let held = stage.load(&HERE(1)).await.unwrap();
    assert_eq!(held.record, running(10, 1), "no version, and nothing of its content");
    stage.is_left(&HERE(1)).await;
    assert!(!stage.renews(&HERE(1), 1, LONG).await, "another may have taken it over");
    stage.stored(&HERE(2), None, &running(10, 1), lease(SHORT)).await;
    assert!(stage.renews(&HERE(2), 1, LONG).await);
    stage.time.pass(SHORT * 2).await;
    assert!(!stage.is_due_saga(&HERE(2)).await, "its lease runs on");
}

pub async fn a_saga_is_given_back_by_a_renewal_without_a_lease(stage: Stage) {
    stage.stored(&HERE(1), None, &running(10, 1), lease(LONG)).await;
    assert!(stage.renews(&HERE(1), 1, Duration::ZERO).await);
    stage.is_left(&HERE(1)).await;
    assert!(stage.load(&HERE(1)).await.unwrap().lease_is_over());
}

pub async fn a_saga_is_taken_over_and_its_former_owner_changes_nothing(stage: Stage) {
    stage.stored(&HERE(1), None, &running(10, 1), lease(SHORT)).await;
    stage.is_left(&HERE(1)).await;
    stage.stored(&HERE(1), Some(10), &running(12, 2), lease(LONG)).await;
    assert!(!stage.is_due_saga(&HERE(1)).await);
    for late in [saga(11, 1, SagaPhase::Compensating), running(11, 3)] {
        let held = stage.stale(&HERE(1), Some(10), &late, lease(LONG)).await.unwrap();
        assert_eq!(held.record, running(12, 2));
    }
    assert!(!stage.renews(&HERE(1), 1, LONG).await && stage.renews(&HERE(1), 2, LONG).await);
    stage.stored(&HERE(1), Some(12), &completed(13), keep(LONG)).await;
}

pub async fn a_saga_that_has_ended_is_not_due(stage: Stage) {
    stage.stored(&HERE(1), None, &running(10, 1), lease(SHORT)).await;
    let brief = Lifetime { keep: SHORT * 2, due: Some(SHORT), tombstone: None };
    stage.stored(&HERE(2), None, &running(10, 1), brief).await;
    stage.stored(&HERE(3), None, &running(10, 1), lease(SHORT)).await;
    stage.stored(&HERE(3), Some(10), &completed(11), keep(LONG)).await;
    stage.until("the record is gone", async || stage.load(&HERE(2)).await.is_none()).await;
    stage.is_left(&HERE(1)).await;
    assert_eq!(stage.due_sagas(100).await, [HERE(1)]);
    assert!(!stage.is_listed(Listing::Sagas, &HERE(3)).await);
}

pub async fn no_more_sagas_are_due_than_requested(stage: Stage) {
    for n in 1..=5 {
        stage.stored(&HERE(n), None, &running(10, 1), lease(SHORT)).await;
    }
    stage.until("all are due", async || stage.due_sagas(100).await.len() == 5).await;
    assert_eq!(stage.due_sagas(2).await.len(), 2);
}

pub async fn a_tombstone_bars_a_saga_that_asks_for_it(stage: Stage) {
    let expiring = with_tombstone(keep(SHORT), LONG);
    for n in 1..=2 {
        stage.stored(&HERE(n), None, &completed(10), expiring).await;
        stage.until("the result is gone", async || stage.load(&HERE(n)).await.is_none()).await;
    }
    let asking = with_tombstone(lease(LONG), LONG);
    let held = stage.stale(&HERE(1), None, &running(20, 2), asking).await.unwrap();
    assert_eq!(held.record.state, State::Expired);
    stage.stored(&HERE(1), None, &marker(30, 3), keep(LONG)).await;
    let held = stage.stale(&HERE(1), Some(30), &running(31, 4), asking).await.unwrap();
    assert_eq!(held.record.state, State::Expired);
    stage.stored(&HERE(2), None, &running(20, 2), lease(LONG)).await;
}

pub async fn each_write_of_a_saga_has_its_events_for_a_sink_and_a_refused_one_has_none(
    stage: Stage,
) {
    let (here, asking) = (HERE(1), with_tombstone(lease(LONG), LONG));
    owned(&stage, &here, RELAY).await;
    let write = async |expected, next: &Record, lifetime, events: &[OutboxEvent]| {
        written(&stage, &here, expected, next, lifetime, events).await
    };
    let [start, refused, step, end] = [10, 20, 11, 12].map(|version| [event(LEDGER, version)]);
    assert_eq!(write(None, &running(10, 1), asking, &start).await, Swap::Stored);
    assert_eq!(write(None, &running(10, 1), asking, &start).await, Swap::Stored, "repeated");
    let other = write(None, &running(20, 2), asking, &refused).await;
    assert!(matches!(other, Swap::Stale(_)), "{other:?}");
    assert_eq!(write(Some(10), &running(11, 1), lease(LONG), &step).await, Swap::Stored);
    assert_eq!(write(Some(11), &completed(12), keep(LONG), &end).await, Swap::Stored);
    for [event] in [&start, &step, &end] {
        let waiting = key(here, event);
        assert_eq!(due_keys(&stage, &here, LEDGER).await, std::slice::from_ref(&waiting));
        assert!(stage.store.outbox.remove(RELAY, &waiting, 0).await.unwrap());
    }
    assert_eq!(due_keys(&stage, &here, LEDGER).await, []);
}

pub async fn a_large_saga_is_read_renewed_and_written_like_any_other(stage: Stage) {
    let text: Vec<u8> =
        (0..LARGE_BYTES).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let large = |version, fence| {
        saga_with(version, fence, SagaPhase::Running, Bytes::copy_from_slice(&text))
    };
    stage.stored(&HERE(1), None, &large(10, 1), lease(LONG)).await;
    assert!(stage.load(&HERE(1)).await.unwrap().record == large(10, 1), "the content differs");
    let held = stage.stale(&HERE(1), None, &claim(20, 2), lease(LONG)).await.unwrap();
    assert!(held.record == large(10, 1), "a duplicate finds another record");
    let other = Some(Version(9));
    let swap = stage.store.records.swap(&HERE(1), other, &large(20, 2), lease(LONG)).await;
    assert!(matches!(swap.unwrap(), Swap::Stale(Some(_)) | Swap::Large(Fence(1))));
    assert!(stage.renews(&HERE(1), 1, SHORT).await);
    assert!(stage.load(&HERE(1)).await.unwrap().record == large(10, 1), "the renewal changed it");
    stage.is_left(&HERE(1)).await;
    stage.stored(&HERE(1), Some(10), &large(12, 2), lease(LONG)).await;
    stage.stored(&HERE(1), Some(12), &large(13, 2), lease(LONG)).await;
    assert!(stage.is_listed(Listing::Sagas, &HERE(1)).await);
    stage.stored(&HERE(1), Some(13), &completed(14), keep(LONG)).await;
}

pub async fn a_bar_refuses_every_claim_and_is_never_due(stage: Stage) {
    stage.stored(&HERE(1), None, &barred(10, 1), keep(LONG)).await;
    stage.stored(&HERE(2), None, &marker(9, 5), keep(LONG)).await;
    stage.stored(&HERE(2), Some(9), &barred(10, 1), keep(LONG)).await;
    for (n, seen) in [(1, None), (2, Some(9)), (2, None)] {
        let held = stage.stale(&HERE(n), seen, &claim(20, 2), lease(LONG)).await.unwrap();
        assert_eq!(held.record, barred(10, 1), "a gateway that slept claims too late");
        let held = stage.stale(&HERE(n), seen, &marker(20, 2), keep(LONG)).await.unwrap();
        assert_eq!(held.record, barred(10, 1), "so it is given up");
    }
    assert_eq!(stage.load(&HERE(1)).await.unwrap().due_ms, 0);
    assert!(!stage.is_listed(Listing::Unsettled, &HERE(1)).await);
    assert!(!stage.is_listed(Listing::Sagas, &HERE(1)).await);
    assert!(stage.is_listed(Listing::All, &HERE(1)).await);
}

pub async fn a_bar_loses_to_a_claim_that_was_faster(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    let held = stage.stale(&HERE(1), None, &barred(20, 2), keep(LONG)).await.unwrap();
    assert_eq!(held.record, claim(10, 1));
    stage.stored(&HERE(2), None, &marker(9, 5), keep(LONG)).await;
    stage.stored(&HERE(2), Some(9), &claim(10, 1), lease(LONG)).await;
    let held = stage.stale(&HERE(2), Some(9), &barred(10, 2), keep(LONG)).await.unwrap();
    assert_eq!(held.record, claim(10, 1));
}

pub async fn a_bar_over_a_record_under_way_takes_it_out_of_the_index(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    stage.stored(&HERE(1), Some(10), &barred(11, 2), keep(LONG)).await;
    assert!(!stage.is_listed(Listing::Unsettled, &HERE(1)).await);
    let held = stage.stale(&HERE(1), Some(10), &completed(11), keep(LONG)).await.unwrap();
    assert_eq!(held.record, barred(11, 2), "the late outcome changes nothing");
    assert!(!stage.renews(&HERE(1), 1, LONG).await);
}
