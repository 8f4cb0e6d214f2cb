//! Stories of sealed records.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::key::Space;
use crate::record::SagaPhase;
use crate::store::memory::Memory;
use crate::store::pending::PendingStore;
use crate::store::suite::{Stage, Time, claim, completed, slot};

const LIFE: Lifetime = Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None };

fn key(id: &str, byte: u8) -> SealingKey {
    SealingKey::new(id, &[byte; KEY_BYTES]).unwrap()
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new(Arc::new(|| 1000)))
}

fn sealed(inner: &Arc<Memory>, keys: Vec<SealingKey>) -> Sealed {
    Sealed::new(inner.clone(), keys).unwrap()
}

#[tokio::test]
async fn stored_results_are_unreadable_and_read_results_are_unchanged() {
    let inner = memory();
    let store = sealed(&inner, vec![key("a", 1)]);
    let (slot, record) = (slot(Space::Enforced, 1), completed(1));
    assert_eq!(store.swap(&slot, None, &record, LIFE).await.unwrap(), Swap::Stored);
    let raw = inner.load(&slot).await.unwrap().unwrap();
    let State::Completed { reply, .. } = &raw.record.state else { panic!("completed") };
    assert!(reply.headers.is_empty() && matches!(reply.body, ReplyBody::Sealed(_)), "{reply:?}");
    assert_eq!(store.load(&slot).await.unwrap().unwrap().record, record);
    let Swap::Stale(Some(found)) = store.swap(&slot, None, &completed(9), LIFE).await.unwrap()
    else {
        panic!("a record exists")
    };
    assert_eq!(found.record, record, "a claim that meets the record gets it opened");
}

#[tokio::test]
async fn a_kept_key_is_sealed_too_and_lost_with_its_sealing_key() {
    for record in [claim(1, 1), completed(1)] {
        let (inner, slot) = (memory(), slot(Space::Enforced, 1));
        let record = Record { kept: Some(Bytes::from_static(b"client-key")), ..record };
        sealed(&inner, vec![key("a", 1)]).swap(&slot, None, &record, LIFE).await.unwrap();
        let raw = inner.load(&slot).await.unwrap().unwrap().record.kept.unwrap();
        assert!(!raw.windows(10).any(|part| part == b"client-key"));
        let reader = sealed(&inner, vec![key("b", 2), key("a", 1)]);
        assert_eq!(reader.load(&slot).await.unwrap().unwrap().record, record);
        if record.state.is_unsettled() {
            let without = sealed(&inner, vec![key("b", 2)]).load(&slot).await.unwrap().unwrap();
            assert_eq!(without.record.kept, None);
        }
    }
}

#[tokio::test]
async fn the_leaves_of_a_request_are_sealed_too_and_lost_with_their_sealing_key() {
    let (inner, mine, theirs) = (memory(), slot(Space::Enforced, 1), slot(Space::Enforced, 2));
    let extras =
        Extras { leaves: Some(Bytes::from_static(b"salt and /amount")), ..Extras::default() };
    for (version, record) in [(1, claim(1, 1)), (2, completed(2))] {
        let record = Record { extras: extras.clone(), ..record };
        let expected = (version > 1).then_some(Version(version - 1));
        let store = sealed(&inner, vec![key("a", 1)]);
        assert_eq!(store.swap(&mine, expected, &record, LIFE).await.unwrap(), Swap::Stored);
        let raw = inner.load(&mine).await.unwrap().unwrap().record;
        assert!(!raw.extras.leaves.as_ref().unwrap().windows(7).any(|part| part == b"/amount"));
        assert_eq!(store.load(&mine).await.unwrap().unwrap().record, record);
        if version == 1 {
            let other = sealed(&inner, vec![key("b", 2)]).load(&mine).await.unwrap().unwrap();
            assert_eq!(other.record, claim(1, 1), "only less is explained");
            inner.swap(&theirs, None, &raw, LIFE).await.unwrap();
            assert_eq!(
                store.load(&theirs).await.unwrap().unwrap().record.extras,
                Extras::default()
            );
        }
    }
}

fn announcing() -> Record {
    let announcements = Announcements {
        source: "urn:onceward".into(),
        rules: Vec::new(),
        uncertain_announced: false,
        hops: 0,
        event_bytes: 1,
    };
    Record { publication: Some(Publication::Open(Arc::new(announcements))), ..claim(1, 1) }
}

#[tokio::test]
async fn a_publication_is_sealed_and_without_its_key_the_record_is_unreadable() {
    let (inner, mine, theirs) = (memory(), slot(Space::Enforced, 1), slot(Space::Enforced, 2));
    let store = sealed(&inner, vec![key("a", 1)]);
    store.swap(&mine, None, &announcing(), LIFE).await.unwrap();
    let raw = inner.load(&mine).await.unwrap().unwrap().record;
    assert!(matches!(raw.publication, Some(Publication::Sealed(_))), "{raw:?}");
    assert_eq!(store.load(&mine).await.unwrap().unwrap().record, announcing());
    inner.swap(&theirs, None, &raw, LIFE).await.unwrap();
    let loads = [store.load(&theirs).await, sealed(&inner, vec![key("b", 2)]).load(&mine).await];
    for loaded in loads {
        assert!(
            matches!(loaded, Err(StoreError::Corrupt(CodecError::Sealed))),
            "settling it would lose its events: {loaded:?}"
        );
    }
}

fn saga() -> Record {
    let content = PrivateContent::Open(Bytes::from_static(b"the plan and the log"));
    let state = State::Saga { phase: SagaPhase::Stuck, content };
    Record { state, ..announcing() }
}

#[tokio::test]
async fn a_saga_is_sealed_except_its_phase_and_bound_to_its_slot() {
    let (inner, mine, theirs) = (memory(), slot(Space::Enforced, 1), slot(Space::Enforced, 2));
    let store = sealed(&inner, vec![key("a", 1)]);
    store.swap(&mine, None, &saga(), LIFE).await.unwrap();
    assert_eq!(store.load(&mine).await.unwrap().unwrap().record, saga());
    let raw = inner.load(&mine).await.unwrap().unwrap().record;
    let State::Saga { phase, content: PrivateContent::Sealed(text) } = &raw.state else {
        panic!("{raw:?}")
    };
    assert_eq!(*phase, SagaPhase::Stuck);
    assert!(!text.windows(4).any(|part| part == b"plan"));
    inner.swap(&theirs, None, &raw, LIFE).await.unwrap();
    let foreign = sealed(&inner, vec![key("b", 2)]);
    for (store, slot) in [(&store, &theirs), (&foreign, &mine)] {
        let record = store.load(slot).await.unwrap().unwrap().record;
        assert_eq!(record, raw, "its duplicates are still refused, and nobody continues it");
    }
}

#[tokio::test]
async fn the_versions_of_a_resource_are_sealed_and_without_their_key_they_stay_so() {
    let (inner, slot) = (memory(), slot(Space::Enforced, 1));
    let text = Bytes::from_static(b"tags and digests");
    let state = State::Versions { content: PrivateContent::Open(text.clone()) };
    let record = Record { state, ..claim(1, 1) };
    sealed(&inner, vec![key("a", 1)]).swap(&slot, None, &record, LIFE).await.unwrap();
    let content = |held: Held| match held.record.state {
        State::Versions { content } => content,
        state => panic!("{state:?}"),
    };
    let PrivateContent::Sealed(raw) = content(inner.load(&slot).await.unwrap().unwrap()) else {
        panic!("sealed")
    };
    assert!(!raw.windows(4).any(|part| part == b"tags"));
    let read = sealed(&inner, vec![key("b", 2), key("a", 1)]).load(&slot).await.unwrap();
    assert_eq!(content(read.unwrap()), PrivateContent::Open(text));
    let foreign = sealed(&inner, vec![key("b", 2)]).load(&slot).await.unwrap();
    assert_eq!(content(foreign.unwrap()), PrivateContent::Sealed(raw));
}

#[tokio::test]
async fn trailers_are_sealed_with_the_result_and_not_taken_away_or_added() {
    let (inner, slot) = (memory(), slot(Space::Enforced, 1));
    let store = sealed(&inner, vec![key("a", 1)]);
    let State::Completed { reply, by } = completed(1).state else { panic!("completed") };
    let trailers =
        HeaderMap::from_iter([("grpc-status", "0"), ("x-secret", "1")].map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        }));
    let with = |reply: &Reply, trailers| {
        let reply = Arc::new(Reply { trailers, ..reply.clone() });
        Record { state: State::Completed { reply, by }, ..completed(1) }
    };
    let record = with(&reply, Some(trailers));
    store.swap(&slot, None, &record, LIFE).await.unwrap();
    assert_eq!(store.load(&slot).await.unwrap().unwrap().record, record);
    let raw = inner.load(&slot).await.unwrap().unwrap().record;
    let State::Completed { reply: shown, .. } = &raw.state else { panic!("completed") };
    assert_eq!(shown.trailers, Some(HeaderMap::new()), "only their existence shows");
    // A reply with trailers can't be turned into a reply without trailers, nor the reverse.
    inner
        .swap(&slot, Some(Version(1)), &Record { version: Version(2), ..with(shown, None) }, LIFE)
        .await
        .unwrap();
    assert!(matches!(store.load(&slot).await, Err(StoreError::Corrupt(CodecError::Sealed))));
}

#[tokio::test]
async fn an_older_key_still_opens_and_an_unknown_one_is_an_error() {
    let (inner, slot) = (memory(), slot(Space::Enforced, 1));
    sealed(&inner, vec![key("old", 1)]).swap(&slot, None, &completed(1), LIFE).await.unwrap();
    let both = sealed(&inner, vec![key("new", 2), key("old", 1)]);
    assert_eq!(both.load(&slot).await.unwrap().unwrap().record, completed(1));
    for keys in [vec![key("new", 2)], vec![key("old", 3)]] {
        let loaded = sealed(&inner, keys).load(&slot).await;
        assert!(matches!(loaded, Err(StoreError::Corrupt(CodecError::Sealed))), "{loaded:?}");
    }
}

#[tokio::test]
async fn a_result_moved_to_another_operation_is_refused() {
    let (inner, mine, theirs) = (memory(), slot(Space::Enforced, 1), slot(Space::Enforced, 2));
    let store = sealed(&inner, vec![key("a", 1)]);
    store.swap(&mine, None, &completed(1), LIFE).await.unwrap();
    let raw = inner.load(&mine).await.unwrap().unwrap();
    inner.swap(&theirs, None, &raw.record, LIFE).await.unwrap();
    assert!(matches!(store.load(&theirs).await, Err(StoreError::Corrupt(CodecError::Sealed))));
}

async fn stage() -> Stage {
    let time = Time::by_hand();
    let inner = Arc::new(Memory::new(time.clock()));
    let keys = Arc::new(SealingKeys::new(vec![key("a", 1)]).unwrap());
    Stage::of_shared(Sealed::store(inner.into(), keys), time)
}

mod as_any_store {
    crate::store::suite::stories!(super::stage);
}

#[tokio::test]
async fn it_answers_when_the_store_below_does() {
    let under = PendingStore::new(memory().into());
    let store = Sealed::new(under.clone(), vec![key("a", 1)]).unwrap();
    assert!(store.ping().await.is_err());
    under.open();
    assert!(store.ping().await.is_ok());
}

#[test]
fn a_key_has_a_name_and_shows_nothing_else() {
    assert_eq!(format!("{:?}", key("a", 1)), "SealingKey { id: \"a\", .. }");
    let named = |length: usize| SealingKey::new(&"k".repeat(length), &[1; KEY_BYTES]).is_ok();
    assert!(named(1) && named(KEY_ID_MAX) && !named(0) && !named(KEY_ID_MAX + 1));
    assert!(
        SealingKey::new("a", &[1; KEY_BYTES - 1]).is_err()
            && Sealed::new(memory(), vec![]).is_err()
    );
}
