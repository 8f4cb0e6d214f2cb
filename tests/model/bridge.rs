//! Converts between the model's small states and the product's records.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use onceward::engine::{
    self, CallerRule, ClaimRequest, Dialect, FingerprintRule, KeyRule, KeySource, Mode, OnFailure,
    OnInFlight, OnMismatch, OnUncertain, Policy, ScopeRule, StatusRules,
};
use onceward::key::{Caller, Fingerprint, KeySyntax};
use onceward::record::{self, Cause, Extras, Fence, Record, Reply, ReplyBody, Settler};

use crate::rules::{LEASE, UNCERTAIN_AFTER};
use crate::state::{
    AGE_MAX, Answer, Entry, FOREVER, Held, Next, Outcome, Stand, Ticks, Version, Who,
};

/// The length of a tick. The engine's shortest marker (60 s) is a few ticks.
pub const TICK: Duration = Duration::from_secs(30);

/// The store's time in every state: ages are before it, deadlines after it.
const NOW_MS: u64 = 1_000_000_000;

/// Durations from here on never end: they are longer than any path of the model.
const FOREVER_MIN: Duration = Duration::from_secs(24 * 3600);

/// The prefix of every reply's body, before the answer's number. The number makes each copy unique.
const BODIES: [&[u8]; 5] = [b"0", b"1", b"2", b"3", b"4"];
const ANSWERS: [Answer; 5] = [
    Answer::Upstream(0),
    Answer::Upstream(1),
    Answer::Upstream(2),
    Answer::Operator,
    Answer::Probe,
];

/// Callers and replies, created once.
pub struct Bridge {
    callers: [Caller; 2],
    fingerprint: Fingerprint,
    replies: Vec<Arc<Reply>>,
    declined: Arc<Reply>,
    route: Arc<str>,
}

impl Bridge {
    pub fn new() -> Bridge {
        let caller = |name: &[u8]| Caller::of_field("authorization", name);
        Bridge {
            callers: [caller(b"alice"), caller(b"stranger")],
            fingerprint: Fingerprint::from_bytes([7; 32]),
            replies: BODIES.iter().map(|body| reply(StatusCode::CREATED, body)).collect(),
            declined: reply(StatusCode::TOO_MANY_REQUESTS, b""),
            route: "payments".into(),
        }
    }

    pub fn asked(&self, fence: u8, who: Who) -> ClaimRequest {
        ClaimRequest {
            caller: self.callers[who as usize],
            fingerprint: self.fingerprint,
            fence: Fence(fence.into()),
        }
    }

    pub fn reply(&self, answer: Answer) -> Arc<Reply> {
        let number = ANSWERS.iter().position(|one| *one == answer).unwrap();
        self.replies[number].clone()
    }

    pub fn answer(&self, reply: &Reply) -> Answer {
        ANSWERS[self.replies.iter().position(|one| one.body == reply.body).unwrap()]
    }

    pub fn outcome(&self, outcome: Outcome, fence: u8) -> engine::Outcome {
        match outcome {
            Outcome::Answered => engine::Outcome::Answered(self.reply(Answer::Upstream(fence))),
            Outcome::Declined => engine::Outcome::Answered(self.declined.clone()),
            Outcome::NeverSent => engine::Outcome::NeverSent,
            Outcome::InDoubt => engine::Outcome::InDoubt(Cause::Broken),
        }
    }

    pub fn record(&self, entry: &Entry) -> Record {
        let state = match entry.stand {
            Stand::InFlight(since) => {
                record::State::InFlight { uncertain_since_ms: since.map(ago) }
            }
            Stand::Uncertain(since) => record::State::Uncertain {
                cause: Cause::Broken,
                since_ms: since.map(ago),
                retry: None,
            },
            Stand::Completed(answer) => {
                record::State::Completed { reply: self.reply(answer), by: Settler::Upstream }
            }
            Stand::Released => record::State::Released,
        };
        Record {
            version: record::Version(entry.version.into()),
            fence: Fence(entry.fence.into()),
            route: self.route.clone(),
            fingerprint: entry.who.map(|_| self.fingerprint),
            caller: entry.who.map(|who| self.callers[who as usize]),
            opened_unix_ms: 0,
            kept: None,
            publication: None,
            extras: Extras::default(),
            state,
        }
    }

    pub fn held(&self, held: &Held) -> record::Held {
        record::Held {
            record: self.record(&held.entry),
            written_ms: ago(held.age),
            due_ms: NOW_MS + millis(TICK * u32::from(held.due)),
            now_ms: NOW_MS,
        }
    }

    pub fn next(&self, next: engine::Next) -> Next {
        let engine::Next { record, lifetime, .. } = next;
        let in_flight = matches!(record.state, record::State::InFlight { .. });
        let stand = match &record.state {
            record::State::InFlight { uncertain_since_ms } => {
                Stand::InFlight(uncertain_since_ms.map(age))
            }
            record::State::Uncertain { since_ms, .. } => Stand::Uncertain(since_ms.map(age)),
            record::State::Completed { reply, .. } => Stand::Completed(self.answer(reply)),
            record::State::Released => Stand::Released,
            record::State::Expired => unreachable!("no rule writes a tombstone"),
            record::State::Saga { .. }
            | record::State::Barred
            | record::State::Lock(_)
            | record::State::Review { .. }
            | record::State::Versions { .. } => {
                unreachable!("the model has no sagas and no resources")
            }
        };
        let who = record
            .caller
            .map(|caller| if caller == self.callers[0] { Who::Alice } else { Who::Stranger });
        assert_eq!(who.is_some(), record.fingerprint.is_some(), "both, or neither");
        Next {
            entry: Entry {
                version: small_version(record.version),
                fence: record.fence.0 as u8,
                who,
                stand,
            },
            // Rules use the end of leases only.
            due: if in_flight { lifetime.due.map_or(0, ticks) } else { 0 },
            keep: ticks(lifetime.keep),
        }
    }
}

pub fn small_version(version: record::Version) -> Version {
    Version::try_from(version.0).unwrap()
}

/// Converts a duration of the engine into ticks.
pub fn ticks(duration: Duration) -> Ticks {
    if duration >= FOREVER_MIN {
        FOREVER
    } else {
        (duration.as_millis() / TICK.as_millis()) as Ticks
    }
}

pub fn ago(age: Ticks) -> u64 {
    NOW_MS - millis(TICK * u32::from(age))
}

fn age(since_ms: u64) -> Ticks {
    (((NOW_MS - since_ms) / millis(TICK)) as Ticks).min(AGE_MAX)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn reply(status: StatusCode, body: &'static [u8]) -> Arc<Reply> {
    Arc::new(Reply {
        status,
        headers: HeaderMap::new(),
        body: ReplyBody::Whole(Bytes::from_static(body)),
        trailers: None,
    })
}

/// The documented defaults, with the model's durations. Results never expire: after its retention a
/// key is new, and the model does not cover that.
pub fn policy() -> Policy {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    Policy {
        route: "payments".into(),
        mode: Mode::Enforce,
        path_case: onceward::key::path::PathCase::Sensitive,
        key: KeyRule {
            source: KeySource::Sent {
                header: Some(HeaderName::from_static("idempotency-key")),
                body: None,
                form: None,
            },
            required: true,
            min_length: 1,
            max_length: 255,
            syntax: KeySyntax::Lenient,
        },
        by_path: false,
        echo_key: false,
        upstream_key: None,
        scope: ScopeRule::Shared,
        caller: CallerRule::Headers(vec![http::header::AUTHORIZATION]),
        fingerprint: FingerprintRule::Json(vec![]),
        // A waiter's steps include those of a refused duplicate.
        on_in_flight: OnInFlight::Wait,
        wait_timeout: TICK,
        on_mismatch: OnMismatch::Reject,
        mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
        on_uncertain: OnUncertain::Hold,
        uncertain_after: TICK * u32::from(UNCERTAIN_AFTER),
        statuses: StatusRules::new(&list(&["2xx"]), &list(&["429"]), &[]).unwrap(),
        drop_headers: vec![],
        redact: vec![],
        retention: 2 * FOREVER_MIN,
        tombstone: Duration::ZERO,
        unsettled_retention: 30 * FOREVER_MIN,
        lease: TICK * u32::from(LEASE),
        on_failure: OnFailure::FailClosed,
        stripe_should_retry: false,
        errors: Dialect::Problem,
        fields: Vec::new(),
        publish: None,
        resource: None,
        explain: false,
        cors: None,
    }
}
