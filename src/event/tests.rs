//! Stories of events: their content, and that folding them gives the state of the record.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::engine::tests::policy;
use crate::engine::{
    Claim, ClaimOver, ClaimRequest, Decision, Next, Outcome, Policy, Settlement, bar, claim,
    decide, expire, saga_claim, saga_progress, settle,
};
use crate::key::{Caller, Fingerprint, Scope, Slot, Space};
use crate::record::{Cause, Fence, Held, PrivateContent, Reply, SagaPhase, Version};
use crate::store::log::Position;
use crate::store::memory::Memory;
use crate::store::{EventLog, Records, Swap};

mod outgoing;
mod written;

fn slot() -> Slot {
    Slot::of(Space::Enforced, "payments", &Scope::shared(), b"k", b"")
}

fn reply(status: u16) -> Arc<Reply> {
    let status = StatusCode::from_u16(status).unwrap();
    Arc::new(Reply {
        status,
        headers: HeaderMap::new(),
        body: ReplyBody::Whole(Bytes::from_static(b"paid")),
        trailers: None,
    })
}

/// An operation in a store, and the active attempt.
struct Play {
    store: Memory,
    now: Arc<AtomicU64>,
    policy: Policy,
    own: Option<Claim>,
    numbers: u64,
}

impl Play {
    fn new() -> Play {
        let now = Arc::new(AtomicU64::new(1_800_000_000_000));
        let clock = now.clone();
        let store = Memory::new(Arc::new(move || clock.load(Ordering::SeqCst)));
        Play { store, now, policy: policy(), own: None, numbers: 1000 }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1000;
        self.numbers
    }

    async fn held(&self) -> Option<Held> {
        self.store.load(&slot()).await.unwrap()
    }

    async fn write(&self, expected: Option<Version>, next: &Next) -> bool {
        let event = Event::of(&next.record, next.lifetime, Context::default()).encode();
        let swapped = self
            .store
            .write(
                &slot(),
                expected,
                &next.record,
                next.lifetime,
                crate::store::Events::logged(&|| event.clone()),
            )
            .await
            .unwrap();
        // A writer without an answer tries again.
        let again = self
            .store
            .write(
                &slot(),
                expected,
                &next.record,
                next.lifetime,
                crate::store::Events::logged(&|| event.clone()),
            )
            .await
            .unwrap();
        assert_eq!(matches!(swapped, Swap::Stored), matches!(again, Swap::Stored));
        swapped == Swap::Stored
    }

    async fn claim(&mut self) {
        let over = match self.held().await {
            None => ClaimOver::Nothing,
            Some(held) => match held.record.state {
                State::Released => ClaimOver::Marker(held.record.version),
                State::Uncertain { .. } => ClaimOver::Uncertain {
                    version: held.record.version,
                    since_ms: held.written_ms,
                    opened_unix_ms: held.record.opened_unix_ms,
                },
                _ => return,
            },
        };
        let asked = ClaimRequest {
            caller: Caller::of_field("authorization", b"alice"),
            fingerprint: Fingerprint::from_bytes([7; 32]),
            fence: Fence(self.number()),
        };
        let next = claim(&asked, over, Version(self.number()), 5, &self.policy);
        if self.write(over.version(), &next).await {
            self.own = Some(Claim { fence: asked.fence, record: next.record });
        }
    }

    async fn settle(&mut self, outcome: Outcome) {
        let Some(own) = self.own.take() else { return };
        let current = self.held().await.map(|held| held.record);
        let fresh = Version(self.number());
        if let Settlement::Write(next) =
            settle(current.as_ref(), &own, &outcome, &self.policy, fresh)
        {
            self.write(current.map(|record| record.version), &next).await;
        }
    }

    async fn decide(&mut self, decision: Decision) {
        let Some(held) = self.held().await else { return };
        if let Ok(next) = decide(&held, decision, Fence(self.number()), &self.policy) {
            self.write(Some(held.record.version), &next).await;
        }
    }

    async fn step(&mut self, step: u8) {
        match step {
            0 | 1 => self.claim().await,
            2 => self.settle(Outcome::Answered(reply(201))).await,
            3 => self.settle(Outcome::Answered(reply(429))).await,
            4 => self.settle(Outcome::NeverSent).await,
            5 => self.settle(Outcome::InDoubt(Cause::Broken)).await,
            6 => _ = self.now.fetch_add(90_000, Ordering::SeqCst),
            7 => {
                if let Some((held, next)) = self.held().await.and_then(|held| {
                    Some((expire(&held, &self.policy)?, held)).map(|(n, h)| (h, n))
                }) {
                    self.write(Some(held.record.version), &next).await;
                }
            }
            8 => self.decide(Decision::Resolve(reply(200))).await,
            9 => self.decide(Decision::Retry).await,
            10 => self.decide(Decision::Release).await,
            11 => self.decide(Decision::Found(reply(202))).await,
            _ => self.decide(Decision::Expire).await,
        }
    }

    async fn folded(&self) -> Option<Summary> {
        let entries = self.store.read(&Position::default(), 1000).await.unwrap();
        Summary::fold(
            entries.into_iter().map(|entry| (entry.id.ms, Event::decode(&entry.event).unwrap())),
        )
    }

    /// The folded events give the state of the record.
    async fn agrees(&self) {
        let Some(held) = self.held().await else { return };
        let summary = self.folded().await.unwrap();
        assert_eq!(summary.state(), held.record.state.name());
        assert_eq!(summary.last.version, held.record.version.0.to_string());
        assert_eq!(summary.last.fence, held.record.fence.0.to_string());
        assert_eq!(summary.changed_ms, held.written_ms);
        let status = match &held.record.state {
            State::Completed { reply, .. } => Some(reply.status.as_u16()),
            _ => None,
        };
        assert_eq!(summary.last.status, status);
        let lease_ends_ms =
            matches!(held.record.state, State::InFlight { .. }).then_some(held.due_ms);
        assert_eq!(summary.lease_ends_ms(), lease_ends_ms);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_events_of_an_operation_fold_to_its_record(
        steps in prop::collection::vec(0_u8..13, 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut play = Play::new();
            for step in steps {
                play.step(step).await;
                play.agrees().await;
            }
        });
    }
}

const LIFE: Lifetime = Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None };

#[tokio::test]
async fn the_wire_form_is_what_readers_were_promised() {
    let mut play = Play::new();
    play.claim().await;
    let record = play.held().await.unwrap().record;
    let context = Context {
        scope: Some("00112233".into()),
        trace: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
        request_bytes: Some(2),
        upstream_ms: Some(41),
        fields: [("order".to_owned(), "o-17".to_owned())].into(),
        operator: Some("on-call".into()),
        reason: Some("seen".into()),
        overwrote: Some("\"v1\"".into()),
        saga: None,
    };
    let lifetime = Lifetime { due: Some(Duration::from_secs(30)), ..LIFE };
    let event = Event::of(&record, lifetime, context);
    let text = String::from_utf8(event.encode()).unwrap();
    let expected = concat!(
        r#"{"kind":"claimed","version":"3000","fence":"2000","route":"payments","opened_ms":5,"#,
        r#""keep_ms":60000,"lease_ms":30000,"scope":"00112233","#,
        r#""trace":"4bf92f3577b34da6a3ce929d0e0e4736","request_bytes":2,"upstream_ms":41,"#,
        r#""fields":{"order":"o-17"},"operator":"on-call","reason":"seen","#,
        r#""overwrote":"\"v1\""}"#,
    );
    assert_eq!(text, expected);
    assert_eq!(Event::decode(text.as_bytes()).unwrap(), event);
    let newer = text.replace("{\"kind\"", "{\"later\":[1],\"kind\"");
    assert_eq!(
        Event::decode(newer.as_bytes()).unwrap(),
        event,
        "members of later versions are passed over"
    );
}

#[tokio::test]
async fn a_long_reason_is_cut_between_characters() {
    let mut play = Play::new();
    play.claim().await;
    let record = play.held().await.unwrap().record;
    let context = Context { reason: Some("\u{e9}".repeat(4000)), ..Context::default() };
    let reason = Event::of(&record, LIFE, context).context.reason.unwrap();
    assert!(
        reason.len() == REASON_BYTES_MAX && reason.chars().all(|c| c == '\u{e9}'),
        "{}",
        reason.len()
    );
}

#[test]
fn a_batch_of_observations_comes_back_and_what_later_versions_say_is_passed_over() {
    let seen = |kind| Observation {
        kind,
        at_ms: 7,
        until_ms: None,
        times: None,
        operation: "op_00112233445566778899aabbccddeeff00112233".into(),
        route: "payments".into(),
        scope: None,
        status: Some(422),
        waited_ms: None,
        problem: Some("key-reused".into()),
        differing: vec![Difference { pointer: "/amount".into() }],
        trace: None,
    };
    let unknown = Observation {
        at_ms: 9,
        operation: String::new(),
        differing: Vec::new(),
        ..seen(ObservationKind::Refused)
    };
    let batch =
        [seen(ObservationKind::WouldReplay), seen(ObservationKind::Refused), unknown.clone()];
    let text = String::from_utf8(Observation::encode(&batch)).unwrap();
    let first = concat!(
        r#"[{"kind":"refused","route":"payments","status":422,"problem":"key-reused","#,
        r#""seen":[{"operation":"op_00112233445566778899aabbccddeeff00112233","at_ms":7,"#,
        r#""differing":[{"pointer":"/amount"}]},{"at_ms":9}]},{"kind":"would_replay""#,
    );
    assert!(text.starts_with(first), "{text}");
    let newer = text.replace("\"would_replay\"", "\"astonished\"").replacen(
        "\"at_ms\"",
        "\"later\":[],\"at_ms\"",
        1,
    );
    assert_eq!(
        Observation::decode(newer.as_bytes()).unwrap(),
        [seen(ObservationKind::Refused), unknown]
    );
    assert!(Observation::decode(b"{}").is_err());
}

#[test]
fn the_events_of_a_saga_and_of_a_bar_have_its_state_and_nothing_of_its_content() {
    let asked = ClaimRequest {
        caller: Caller::nobody(),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        fence: Fence(1),
    };
    let content = PrivateContent::Open(Bytes::from_static(b"the card number"));
    let begun = saga_claim(&asked, ClaimOver::Nothing, Version(5), 9, &policy(), content.clone());
    let stuck = saga_progress(&begun.record, SagaPhase::Stuck, content, &policy());
    let barred = bar(None, Fence(2), Version(5), 9, &policy()).unwrap();
    for (next, state, phase) in
        [(begun, "saga", Some("running")), (stuck, "saga", Some("stuck")), (barred, "barred", None)]
    {
        let event = Event::of(&next.record, next.lifetime, Context::default());
        let text = String::from_utf8(event.encode()).unwrap();
        assert!(!text.contains("card"), "{text}");
        assert_eq!(event.phase.as_deref(), phase);
        assert_eq!(event.lease_ms.is_some(), phase.is_some(), "its owner's lease");
        let folded = Summary::fold([(1, Event::decode(text.as_bytes()).unwrap())]).unwrap();
        assert_eq!((folded.state(), folded.state()), (state, next.record.state.name()));
    }
}
