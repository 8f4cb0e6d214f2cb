//! Stories of records and notes.
#![allow(missing_docs)]

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::records::{
    HERE, LONG, SHORT, claim, completed, keep, lease, marker, record, slot, uncertain,
    with_tombstone,
};
use super::stage::{PATIENCE, Stage};
use crate::key::{Slot, Space};
use crate::record::{
    Announcements, Cause, Fence, Lifetime, Publication, Record, Reply, ReplyBody, Settler, State,
};
use crate::store::error::ListError;
use crate::store::identities::Note;
use crate::store::records::{Listing, Swap};

pub async fn a_claim_over_nothing_is_stored(stage: Stage) {
    assert_eq!(stage.load(&HERE(1)).await, None);
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, claim(10, 1));
    assert_eq!(stage.load(&HERE(2)).await, None);
}

pub async fn a_stale_answer_carries_the_record_that_stands(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    let held = stage.stale(&HERE(1), None, &claim(20, 2), lease(LONG)).await.unwrap();
    let loaded = stage.load(&HERE(1)).await.unwrap();
    assert_eq!(held.record, claim(10, 1));
    assert_eq!((held.written_ms, held.due_ms), (loaded.written_ms, loaded.due_ms));
    assert!(held.written_ms <= held.now_ms && held.now_ms <= loaded.now_ms);
}

pub async fn deadlines_are_counted_by_the_stores_clock(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(SHORT)).await;
    let held = stage.load(&HERE(1)).await.unwrap();
    assert_eq!(held.due_ms - held.written_ms, SHORT.as_millis() as u64);
    stage
        .until("its lease is over", async || stage.load(&HERE(1)).await.unwrap().lease_is_over())
        .await;
    let later = stage.load(&HERE(1)).await.unwrap();
    assert_eq!((later.written_ms, later.due_ms), (held.written_ms, held.due_ms));
    assert!(later.now_ms >= held.due_ms);
}

pub async fn a_settled_record_is_never_due(stage: Stage) {
    stage.stored(&HERE(1), None, &completed(10), keep(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().due_ms, 0);
    assert!(!stage.is_due(&HERE(1)).await);
}

pub async fn one_of_many_claims_wins(stage: Stage) {
    let tries = (1..=50).map(|n| {
        let store = stage.store.clone();
        tokio::spawn(async move {
            (n, store.records.swap(&HERE(1), None, &claim(n * 1000, n), lease(LONG)).await.unwrap())
        })
    });
    let mut answers = Vec::new();
    for attempt in tries.collect::<Vec<_>>() {
        answers.push(attempt.await.unwrap());
    }
    let winners: Vec<u64> =
        answers.iter().filter(|(_, swap)| *swap == Swap::Stored).map(|(n, _)| *n).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let winner = claim(winners[0] * 1000, winners[0]);
    for (_, swap) in answers {
        if let Swap::Stale(held) = swap {
            assert_eq!(held.unwrap().record, winner);
        }
    }
}

pub async fn a_write_names_the_version_it_replaces(stage: Stage) {
    assert_eq!(stage.stale(&HERE(1), Some(10), &completed(11), keep(LONG)).await, None);
    assert_eq!(stage.load(&HERE(1)).await, None);
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    for other in [9, 11, 0, u64::MAX] {
        let held = stage.stale(&HERE(1), Some(other), &completed(100), keep(LONG)).await.unwrap();
        assert_eq!(held.record, claim(10, 1));
    }
    stage.stored(&HERE(1), Some(10), &completed(11), keep(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, completed(11));
}

pub async fn versions_and_fences_use_all_their_bits(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(u64::MAX, u64::MAX - 1), lease(LONG)).await;
    stage.stale(&HERE(1), Some(u64::MAX - 1), &claim(0, 5), lease(LONG)).await;
    assert!(!stage.store.records.renew(&HERE(1), Fence(u64::MAX), LONG, LONG).await.unwrap());
    stage.stored(&HERE(1), Some(u64::MAX), &claim(0, 5), lease(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, claim(0, 5));
}

pub async fn a_record_keeps_its_publication(stage: Stage) {
    let announcements = Announcements {
        source: "urn:onceward".into(),
        rules: Vec::new(),
        uncertain_announced: true,
        hops: 3,
        event_bytes: 64,
    };
    let publication = Some(Publication::Open(Arc::new(announcements)));
    let record = Record { publication, ..claim(1, 1) };
    stage.stored(&HERE(1), None, &record, lease(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, record);
}

pub async fn a_repeated_write_is_stored_once(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    stage.stored(&HERE(1), Some(10), &uncertain(11, 1), lease(LONG)).await;
    stage.stored(&HERE(1), Some(10), &uncertain(11, 1), lease(LONG)).await;
    // The claim is repeated late: the slot holds another record by now.
    assert_eq!(
        stage.stale(&HERE(1), None, &claim(10, 1), lease(LONG)).await.unwrap().record,
        uncertain(11, 1)
    );
    // The same version under another fence is another write.
    assert_eq!(
        stage.stale(&HERE(1), Some(10), &uncertain(11, 2), lease(LONG)).await.unwrap().record,
        uncertain(11, 1)
    );
}

pub async fn a_late_claim_meets_the_marker_and_is_refused(stage: Stage) {
    stage.stored(&HERE(1), None, &marker(10, 1), keep(LONG)).await;
    assert_eq!(
        stage.stale(&HERE(1), None, &claim(20, 1), lease(LONG)).await.unwrap().record,
        marker(10, 1)
    );
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, marker(10, 1));
}

pub async fn a_marker_is_replaced_only_by_naming_its_version(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    stage.stored(&HERE(1), Some(10), &marker(11, 1), keep(LONG)).await;
    stage.stale(&HERE(1), None, &claim(20, 2), lease(LONG)).await;
    stage.stale(&HERE(1), Some(10), &claim(20, 2), lease(LONG)).await;
    stage.stored(&HERE(1), Some(11), &claim(12, 2), lease(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, claim(12, 2));
}

pub async fn a_renewal_moves_the_due_time_and_no_version(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(SHORT)).await;
    assert!(stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG * 2).await.unwrap());
    let held = stage.load(&HERE(1)).await.unwrap();
    assert_eq!(held.record, claim(10, 1));
    assert!(held.due_ms >= held.written_ms + LONG.as_millis() as u64);
    stage.time.pass(SHORT * 2).await;
    assert!(!stage.is_due(&HERE(1)).await);
    assert!(stage.store.records.renew(&HERE(1), Fence(1), SHORT, LONG).await.unwrap());
    stage.until("the shortened lease is over", async || stage.is_due(&HERE(1)).await).await;
}

pub async fn a_renewal_prolongs_the_life_of_the_record(stage: Stage) {
    stage
        .stored(&HERE(1), None, &claim(10, 1), Lifetime { keep: SHORT * 10, ..lease(SHORT) })
        .await;
    assert!(stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG).await.unwrap());
    stage.time.pass(SHORT * 11).await;
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, claim(10, 1));
}

pub async fn only_the_active_attempt_renews(stage: Stage) {
    assert!(!stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG).await.unwrap());
    assert_eq!(stage.load(&HERE(1)).await, None);
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    assert!(!stage.store.records.renew(&HERE(1), Fence(2), LONG, LONG).await.unwrap());
    stage.stored(&HERE(1), Some(10), &uncertain(11, 1), lease(LONG)).await;
    assert!(!stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG).await.unwrap());
    stage.stored(&HERE(1), Some(11), &marker(12, 1), keep(LONG)).await;
    assert!(!stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG).await.unwrap());
    assert_eq!(stage.load(&HERE(1)).await.unwrap().due_ms, 0);
}

pub async fn a_lease_that_is_over_is_not_renewed(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(SHORT)).await;
    stage
        .until("its lease is over", async || stage.load(&HERE(1)).await.unwrap().lease_is_over())
        .await;
    let over = stage.load(&HERE(1)).await.unwrap();
    assert!(!stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG).await.unwrap());
    let held = stage.load(&HERE(1)).await.unwrap();
    assert_eq!((&held.record, held.due_ms), (&over.record, over.due_ms));
    assert!(stage.is_due(&HERE(1)).await);
}

pub async fn an_ended_lease_is_due_and_nothing_else(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(SHORT)).await;
    stage.stored(&HERE(2), None, &claim(20, 2), lease(LONG)).await;
    stage.stored(&HERE(3), None, &completed(30), keep(LONG)).await;
    stage.stored(&HERE(4), None, &uncertain(40, 4), lease(LONG)).await;
    stage.stored(&slot(Space::Shadow, 5), None, &claim(50, 5), lease(SHORT)).await;
    let expected = HashSet::from([HERE(1), slot(Space::Shadow, 5)]);
    let all =
        async || stage.store.records.due(100).await.unwrap().into_iter().collect::<HashSet<_>>();
    stage.until("both leases are over", async || all().await.len() >= 2).await;
    assert_eq!(all().await, expected);
    stage.time.pass(SHORT).await;
    assert_eq!(all().await, expected, "overdue records stay due until they are settled");
}

pub async fn no_more_is_due_than_requested(stage: Stage) {
    for n in 1..=20 {
        stage.stored(&HERE(n), None, &claim(n, n), lease(SHORT)).await;
    }
    stage
        .until("all leases are over", async || {
            stage.store.records.due(100).await.unwrap().len() == 20
        })
        .await;
    let some = stage.store.records.due(5).await.unwrap();
    assert!(!some.is_empty() && some.len() <= 5, "{}", some.len());
}

pub async fn a_result_leaves_the_index(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(SHORT)).await;
    assert!(stage.is_listed(Listing::Unsettled, &HERE(1)).await);
    stage.until("its lease is over", async || stage.is_due(&HERE(1)).await).await;
    stage.stored(&HERE(1), Some(10), &completed(11), keep(LONG)).await;
    assert!(!stage.is_due(&HERE(1)).await);
    assert!(!stage.is_listed(Listing::Unsettled, &HERE(1)).await);
    assert!(stage.is_listed(Listing::All, &HERE(1)).await);
}

pub async fn an_uncertain_record_stays_among_the_unsettled(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(SHORT)).await;
    stage.until("its lease is over", async || stage.is_due(&HERE(1)).await).await;
    stage.stored(&HERE(1), Some(10), &uncertain(11, 1), lease(LONG)).await;
    assert!(!stage.is_due(&HERE(1)).await);
    let listed = stage.listed(Listing::Unsettled, 100).await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].0, &listed[0].1.record), (HERE(1), &uncertain(11, 1)));
}

pub async fn a_record_is_gone_when_its_time_is_over(stage: Stage) {
    stage.stored(&HERE(1), None, &completed(10), keep(SHORT)).await;
    stage.stored(&HERE(2), None, &completed(20), keep(LONG)).await;
    stage.until("it is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    assert!(!stage.is_listed(Listing::All, &HERE(1)).await);
    assert_eq!(stage.stale(&HERE(1), Some(10), &completed(11), keep(LONG)).await, None);
    stage.stored(&HERE(1), None, &claim(30, 3), lease(LONG)).await;
    assert_eq!(stage.load(&HERE(2)).await.unwrap().record, completed(20));
}

pub async fn the_index_forgets_records_that_are_gone(stage: Stage) {
    stage
        .stored(
            &HERE(1),
            None,
            &claim(10, 1),
            Lifetime { keep: SHORT, due: Some(SHORT / 2), tombstone: None },
        )
        .await;
    stage.until("it is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    assert!(!stage.store.records.renew(&HERE(1), Fence(1), LONG, LONG).await.unwrap());
    stage.until("it is forgotten", async || !stage.is_due(&HERE(1)).await).await;
    assert!(!stage.is_listed(Listing::Unsettled, &HERE(1)).await);
}

pub async fn a_tombstone_outlives_its_result(stage: Stage) {
    let late = with_tombstone(lease(LONG), LONG);
    stage.stored(&HERE(1), None, &claim(10, 1), late).await;
    stage.stored(&HERE(1), Some(10), &completed(11), with_tombstone(keep(SHORT), LONG)).await;
    stage.until("the result is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    let held = stage.stale(&HERE(1), None, &claim(20, 2), late).await.unwrap();
    assert_eq!(held.record, Record { state: State::Expired, ..completed(11) });
    assert_eq!(held.due_ms, 0);
    assert!(held.written_ms <= held.now_ms);
    assert_eq!(stage.load(&HERE(1)).await, None, "a tombstone is not a record");
    assert_eq!(
        stage.store.records.remains(&HERE(1)).await.unwrap().unwrap().record,
        held.record,
        "but it is what remains"
    );
    assert!(!stage.is_listed(Listing::All, &HERE(1)).await);
}

pub async fn a_claim_meets_the_result_and_not_its_tombstone(stage: Stage) {
    stage.stored(&HERE(1), None, &completed(10), with_tombstone(keep(LONG), LONG * 2)).await;
    let held = stage
        .stale(&HERE(1), None, &claim(20, 2), with_tombstone(lease(LONG), LONG))
        .await
        .unwrap();
    assert_eq!(held.record, completed(10));
    assert_eq!(stage.store.records.remains(&HERE(1)).await.unwrap().unwrap().record, completed(10));
    assert_eq!(stage.store.records.remains(&HERE(2)).await.unwrap(), None);
}

pub async fn a_tombstone_bars_a_claim_over_a_marker_too(stage: Stage) {
    let late = with_tombstone(lease(LONG), LONG);
    stage.stored(&HERE(1), None, &completed(10), with_tombstone(keep(SHORT), LONG)).await;
    stage.until("the result is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    // A claim with a lost answer was given up: the marker was written to an empty slot.
    stage.stored(&HERE(1), None, &marker(20, 2), keep(LONG)).await;
    let held = stage.stale(&HERE(1), Some(20), &claim(21, 3), late).await.unwrap();
    assert_eq!(held.record.state, State::Expired);
}

pub async fn a_tombstone_ends(stage: Stage) {
    let late = with_tombstone(lease(LONG), LONG);
    stage.stored(&HERE(1), None, &completed(10), with_tombstone(keep(SHORT), SHORT * 2)).await;
    stage
        .until("the key is new again", async || {
            stage.swap(&HERE(1), None, &claim(20, 2), late).await == Swap::Stored
        })
        .await;
}

pub async fn a_tombstone_blocks_only_claims_that_ask_for_it(stage: Stage) {
    stage.stored(&HERE(1), None, &completed(10), with_tombstone(keep(SHORT), LONG)).await;
    stage.until("the result is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    stage.stored(&HERE(1), None, &claim(20, 2), lease(LONG)).await;
}

pub async fn only_a_result_leaves_a_tombstone(stage: Stage) {
    let checking = with_tombstone(lease(LONG), LONG);
    stage.stored(&HERE(1), None, &claim(10, 1), Lifetime { keep: SHORT, ..checking }).await;
    stage.until("the claim is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    stage.stored(&HERE(1), None, &claim(20, 2), checking).await;
}

pub async fn a_listing_pages_through_everything_once(stage: Stage) {
    for n in 1..=130 {
        stage.stored(&HERE(n), None, &claim(n, n), lease(LONG)).await;
        stage.stored(&HERE(1000 + n), None, &completed(n), keep(LONG)).await;
    }
    for (listing, expected, limit) in
        [(Listing::All, 260, 25), (Listing::All, 260, 1), (Listing::Unsettled, 130, 25)]
    {
        let listed = stage.listed(listing, limit).await;
        let slots: HashSet<Slot> = listed.iter().map(|(slot, _)| *slot).collect();
        assert_eq!((listed.len(), slots.len()), (expected, expected), "{listing:?}");
        assert!((1..=130).all(|n| slots.contains(&HERE(n))), "{listing:?}");
    }
    let listed = stage.listed(Listing::All, 25).await;
    let (_, held) = listed.iter().find(|(slot, _)| *slot == HERE(7)).unwrap();
    assert_eq!(held.record, claim(7, 7));
}

pub async fn an_empty_store_lists_nothing(stage: Stage) {
    assert!(stage.listed(Listing::All, 25).await.is_empty());
    assert!(stage.listed(Listing::Unsettled, 25).await.is_empty());
    assert!(stage.store.records.due(25).await.unwrap().is_empty());
    stage.store.records.ping().await.unwrap();
}

pub async fn a_malformed_cursor_is_an_error(stage: Stage) {
    for listing in [Listing::All, Listing::Unsettled] {
        let listed = stage.store.records.list(listing, Some("no cursor"), 25).await;
        assert!(matches!(listed, Err(ListError::Cursor)), "{listing:?}: {listed:?}");
    }
}

pub async fn shadow_records_are_kept_apart_and_not_listed(stage: Stage) {
    let shadow = slot(Space::Shadow, 1);
    assert_eq!(shadow.hash(), HERE(1).hash());
    stage.stored(&shadow, None, &claim(10, 1), lease(LONG)).await;
    assert_eq!(stage.load(&HERE(1)).await, None);
    stage.stored(&HERE(1), None, &claim(20, 2), lease(LONG)).await;
    assert_eq!(stage.load(&shadow).await.unwrap().record, claim(10, 1));
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, claim(20, 2));
    for listing in [Listing::All, Listing::Unsettled] {
        let slots: Vec<Slot> =
            stage.listed(listing, 100).await.into_iter().map(|(slot, _)| slot).collect();
        assert_eq!(slots, [HERE(1)], "{listing:?}");
    }
}

pub async fn a_watcher_is_woken_at_once(stage: Stage) {
    let mut watch = stage.store.records.watch(&HERE(1));
    tokio::time::timeout(PATIENCE, watch.changed()).await.expect("the first call returns");
}

pub async fn a_swap_wakes_every_watcher(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    let mut watchers = [stage.store.records.watch(&HERE(1)), stage.store.records.watch(&HERE(1))];
    for watch in &mut watchers {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("the first call returns");
    }
    stage.stored(&HERE(1), Some(10), &completed(11), keep(LONG)).await;
    for watch in &mut watchers {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("the change wakes");
    }
}

pub async fn notes_are_separate_and_change_only_from_the_expected_text(stage: Stage) {
    let store = &stage.store;
    for note in Note::ALL {
        assert_eq!(store.identities.note(note).await.unwrap(), None, "{note:?}");
        assert!(!store.identities.set_note(note, Some("other"), "one").await.unwrap());
        assert!(store.identities.set_note(note, None, "one").await.unwrap());
        assert_eq!(store.identities.note(note).await.unwrap().as_deref(), Some("one"));
        for expected in [None, Some("other"), Some("two")] {
            assert!(
                !store.identities.set_note(note, expected, "two").await.unwrap(),
                "{expected:?}"
            );
            assert!(
                store.identities.set_note(note, expected, "one").await.unwrap(),
                "a repetition"
            );
        }
        assert!(store.identities.set_note(note, Some("one"), "two").await.unwrap());
        assert_eq!(store.identities.note(note).await.unwrap().as_deref(), Some("two"));
    }
    assert!(stage.listed(Listing::All, 100).await.is_empty(), "notes are not records");
}

pub async fn a_big_reply_comes_back_as_it_was(stage: Stage) {
    let mut headers = HeaderMap::new();
    for n in 0..200 {
        let name = HeaderName::from_bytes(format!("x-field-{}", n % 150).as_bytes()).unwrap();
        headers.append(
            name,
            HeaderValue::from_bytes(format!("value, {n}; caf\u{e9}").as_bytes()).unwrap(),
        );
    }
    let body: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let reply = Arc::new(Reply {
        status: StatusCode::ACCEPTED,
        headers,
        body: ReplyBody::Whole(body.into()),
        trailers: None,
    });
    let big = record(10, 1, State::Completed { reply, by: Settler::Operator });
    stage.stored(&HERE(1), None, &big, keep(LONG)).await;
    assert!(stage.load(&HERE(1)).await.unwrap().record == big, "the reply differs");
    let held = stage.stale(&HERE(1), None, &claim(20, 2), lease(LONG)).await.unwrap();
    assert!(held.record == big, "the reply differs");
}

pub async fn every_state_comes_back_as_it_was(stage: Stage) {
    let not_stored = Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: ReplyBody::NotStored,
        trailers: None,
    };
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let trailed = Reply {
        body: ReplyBody::Whole(Bytes::from_static(b"paid")),
        trailers: Some(trailers),
        ..not_stored.clone()
    };
    let states = [
        State::Completed { reply: Arc::new(trailed), by: Settler::Upstream },
        State::InFlight { uncertain_since_ms: Some(5) },
        State::Uncertain { cause: Cause::Status(504), since_ms: Some(6), retry: Some(Fence(9)) },
        State::Completed { reply: Arc::new(not_stored), by: Settler::Upstream },
        State::Expired,
    ];
    for (n, state) in states.into_iter().enumerate() {
        let written = record(10, 1, state);
        stage.stored(&HERE(n as u64), None, &written, keep(LONG)).await;
        assert_eq!(stage.load(&HERE(n as u64)).await.unwrap().record, written);
    }
}
