//! The rules of the model: the product's own, called with real records. Each flaw removes one rule.

use std::time::Duration;

use onceward::engine::{
    self, Admission, Claim, ClaimOver, Decision, LockAdmission, LockRequest, OnInFlight,
    OnUncertain, Policy, Settlement, UnsentProof,
};
use onceward::key::Slot;
use onceward::record::{self, Cause, Extras, Fence, Record};

use super::state::{
    Age, Entry, Held, Lease, Lock, OPERATIONS, Operation, Outcome, Phase, Stand, Version,
};
use crate::bridge::{Bridge, policy};
use crate::state::{Answer, Outcome as AttemptOutcome, Who};

/// A removed rule. Each must break a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The lock is free at the end of the lease, also if the write was sent.
    FreeAtLeaseEnd,
    /// An attempt looks before it takes the lock.
    LooksBeforeLock,
    /// Each operation has a lock of its own, as if the lock belonged to a scope.
    LockPerScope,
    /// An attempt from uncertain releases its operation if its comparison fails.
    ReleasesAfterUncertain,
    /// The lock is marked as sent whatever its version is.
    MarksAnyVersion,
    /// A write that died looking is released, and its lock is not freed first. Not needed beside
    /// the send rule.
    ReleasesUnfreed,
    /// An attempt from uncertain takes the lock as looking. Not needed beside the rule that an
    /// attempt from uncertain is never released.
    TakesAsLooking,
    /// The first byte is sent before the lock is marked as sent.
    SendsBeforeMark,
    /// The end of the lease does not keep an attempt from sending.
    NoSendRule,
    /// A lock that is gone proves that nothing was sent.
    AbsentProves,
    /// The lock of another write proves that nothing was sent, however long ago the lease ended.
    ProvesForEver,
    /// An attempt from uncertain takes the lock as looking, and is released like any other attempt
    /// that died looking.
    LooksAfterUncertain,
    /// An attempt from uncertain is released if the lock is not its own.
    ProvesAfterUncertain,
    /// An attempt that has lost its claim takes the lock from the later attempt of its operation.
    TakesFromLaterAttempt,
    /// A gateway remembers its lock as free after it found the operation in flight.
    RemembersStale,
}

/// A change to the record of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    Write(Entry),
    Done,
    Stale,
}

/// Whether an attempt may take the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    Take(Option<Version>),
    Wait,
    MarkOverdue,
    /// The write of this operation may still be executed.
    Refuse(Operation),
    /// The attempt has lost its claim.
    End,
}

/// What a lock proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    Proven,
    IfWritten(Lock),
    Nothing,
}

/// The rules, with their inputs.
pub struct Rules {
    pub flaw: Option<Flaw>,
    /// Whether duplicates of an uncertain operation are sent again, and the upstream executes a key
    /// once.
    pub forwards: bool,
    policy: Policy,
    bridge: Bridge,
    /// The slots of the operations. That of the last one is only asked for.
    slots: [Slot; OPERATIONS + 1],
}

/// The store's time in every state.
const NOW_MS: u64 = 1_000_000_000;
/// Less than every duration of the rules.
const MOMENT_MS: u64 = 1000;
/// More than every duration that the rules compare.
const LONG_MS: u64 = 10_000_000;

impl Rules {
    pub fn new(flaw: Option<Flaw>, forwards: bool) -> Rules {
        let on_uncertain = if forwards { OnUncertain::Forward } else { OnUncertain::Hold };
        let policy = Policy { on_in_flight: OnInFlight::Reject, on_uncertain, ..policy() };
        let slots = ["0", "1", "2"].map(|name| Slot::of_resource(name, b"", []));
        Rules { flaw, forwards, policy, bridge: Bridge::new(), slots }
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// `admit` and `claim`: the claim of an attempt, if it may begin now.
    pub fn claim(&self, held: Option<&Held>, fence: u8) -> Option<Entry> {
        let asked = self.bridge.asked(fence, Who::Alice);
        let current = held.map(|held| self.held(held));
        let Admission::Claim(over) = engine::admit(current.as_ref(), &asked, &self.policy) else {
            return None;
        };
        assert!(matches!(over, ClaimOver::Nothing) == held.is_none());
        let fresh = record::Version(1);
        Some(entry(&engine::claim(&asked, over, fresh, 0, &self.policy).record))
    }

    /// `settle`.
    pub fn settle(&self, current: Option<&Entry>, claim: &Entry, outcome: Outcome) -> Becomes {
        let mut claimed = *claim;
        if self.has(Flaw::ReleasesAfterUncertain) && outcome == Outcome::NeverSent {
            claimed.stand = Stand::InFlight(None);
        }
        let claim = Claim { fence: Fence(claim.fence.into()), record: self.record(&claimed) };
        let outcome = match outcome {
            Outcome::Answered => AttemptOutcome::Answered,
            Outcome::Declined => AttemptOutcome::Declined,
            Outcome::NeverSent => AttemptOutcome::NeverSent,
            Outcome::InDoubt => AttemptOutcome::InDoubt,
        };
        let outcome = self.bridge.outcome(outcome, 0);
        let current = current.map(|entry| self.record(entry));
        let fresh = record::Version(1);
        match engine::settle(current.as_ref(), &claim, &outcome, &self.policy, fresh) {
            Settlement::Write(next) => Becomes::Write(entry(&next.record)),
            Settlement::Done => Becomes::Done,
            Settlement::Stale => Becomes::Stale,
        }
    }

    /// `expire`.
    pub fn expire(&self, held: &Held) -> Option<Entry> {
        Some(entry(&engine::expire(&self.held(held), &self.policy)?.record))
    }

    /// `release_unsent`.
    pub fn release_unsent(&self, held: &Held) -> Entry {
        entry(&engine::release_unsent(&self.held(held), &self.policy).record)
    }

    /// `decide`.
    pub fn resolve(&self, held: &Held, fence: u8) -> Option<Entry> {
        self.decide(held, Decision::Resolve(self.bridge.reply(Answer::Operator)), fence)
    }

    /// `decide`: the operation was not executed.
    pub fn release(&self, held: &Held, fence: u8) -> Option<Entry> {
        self.decide(held, Decision::Release, fence)
    }

    /// `decide`: the operation was not executed, and the next duplicate runs.
    pub fn retry(&self, held: &Held, fence: u8) -> Option<Entry> {
        self.decide(held, Decision::Retry, fence)
    }

    /// `lock_holder` and `lock_admission`. `holder` returns the record of an operation.
    pub fn lock_admission<'h>(
        &self,
        lock: Option<&Lock>,
        holder: impl Fn(Operation) -> Option<&'h Held>,
        request: (Operation, u8, bool),
    ) -> May {
        let (lock, request) = (lock.map(|lock| self.held_lock(lock)), self.lock_request(request));
        let operation = engine::lock_holder(lock.as_ref()).map(|slot| self.operation_of(slot));
        let holder = operation.and_then(holder);
        let held = holder.map(|held| self.held(held));
        let over = lock.as_ref().map(|held| small(held.record.version));
        if self.has(Flaw::FreeAtLeaseEnd) && holder.is_some_and(|held| held.lease != Lease::Runs) {
            return May::Take(over);
        }
        match engine::lock_admission(lock.as_ref(), held.as_ref(), &request) {
            LockAdmission::Take(over) => May::Take(over.map(small)),
            LockAdmission::Lost if self.has(Flaw::TakesFromLaterAttempt) => May::Take(over),
            LockAdmission::Lost => May::End,
            LockAdmission::Wait(_) => May::Wait,
            LockAdmission::MarkOverdue(_) => May::MarkOverdue,
            LockAdmission::Uncertain { operation, .. } => May::Refuse(self.operation_of(operation)),
        }
    }

    /// `taken_lock`.
    pub fn taken_lock(
        &self,
        (operation, fence, was_uncertain): (Operation, u8, bool),
        over: Option<Version>,
        fresh: Version,
    ) -> Lock {
        let was_uncertain = was_uncertain
            && !self.has(Flaw::LooksAfterUncertain)
            && !self.has(Flaw::TakesAsLooking);
        let request = self.lock_request((operation, fence, was_uncertain));
        let over = over.map(|over| record::Version(over.into()));
        let (fresh, busy) = (record::Version(fresh.into()), Duration::ZERO);
        self.lock(&engine::taken_lock(&request, over, fresh, 0, &self.policy, busy).record)
    }

    /// `sent_lock`.
    pub fn sent_lock(&self, taken: &Lock) -> Option<Lock> {
        let next = engine::sent_lock(&self.lock_record(taken), &self.policy, Duration::ZERO)?;
        Some(self.lock(&next.record))
    }

    /// `unsent_proof`.
    pub fn unsent_proof(
        &self,
        found: Option<&Lock>,
        attempt: &Held,
        operation: Operation,
        fence: u8,
    ) -> Proof {
        let is_own = found
            .is_some_and(|lock| lock.operation == operation && lock.fence == attempt.entry.fence);
        let mut attempt = *attempt;
        match self.flaw {
            Some(Flaw::AbsentProves) if found.is_none() => return Proof::Proven,
            Some(Flaw::ProvesForEver) => attempt.lease = Lease::Ended,
            Some(Flaw::LooksAfterUncertain) if is_own => {
                attempt.entry.stand = Stand::InFlight(None)
            }
            Some(Flaw::ProvesAfterUncertain) if !is_own => {
                attempt.entry.stand = Stand::InFlight(None);
            }
            _ => {}
        }
        let found = found.map(|lock| self.held_lock(lock));
        let (attempt, fence) = (self.held(&attempt), Fence(fence.into()));
        match engine::unsent_proof(
            found.as_ref(),
            &attempt,
            &self.slots[usize::from(operation)],
            fence,
        ) {
            UnsentProof::Proven => Proof::Proven,
            UnsentProof::IfWritten(_) if self.has(Flaw::ReleasesUnfreed) => Proof::Proven,
            UnsentProof::IfWritten(next) => Proof::IfWritten(self.lock(&next.record)),
            UnsentProof::None => Proof::Nothing,
        }
    }

    fn decide(&self, held: &Held, decision: Decision, fence: u8) -> Option<Entry> {
        let (held, fence) = (self.held(held), Fence(fence.into()));
        Some(entry(&engine::decide(&held, decision, fence, &self.policy).ok()?.record))
    }

    fn held(&self, held: &Held) -> record::Held {
        let written_ms = match held.entry.stand {
            Stand::Uncertain { age, is_given: false, .. } => since_ms(age),
            _ => NOW_MS - MOMENT_MS,
        };
        let due_ms = match held.lease {
            Lease::Runs => NOW_MS + MOMENT_MS,
            Lease::Ended => NOW_MS - MOMENT_MS,
            Lease::EndedLongAgo => NOW_MS - LONG_MS,
        };
        record::Held { record: self.record(&held.entry), written_ms, due_ms, now_ms: NOW_MS }
    }

    fn record(&self, entry: &Entry) -> Record {
        let state = match entry.stand {
            Stand::InFlight(age) => {
                record::State::InFlight { uncertain_since_ms: age.map(since_ms) }
            }
            Stand::Uncertain { age, is_given, retry } => record::State::Uncertain {
                cause: Cause::Broken,
                since_ms: is_given.then(|| since_ms(age)),
                retry: retry.map(|lost| Fence(lost.into())),
            },
            Stand::Completed => record::State::Completed {
                reply: self.bridge.reply(Answer::Upstream(0)),
                by: record::Settler::Upstream,
            },
            Stand::Released => record::State::Released,
        };
        let asked = self.bridge.asked(entry.fence, Who::Alice);
        let is_released = entry.stand == Stand::Released;
        Record {
            version: record::Version(entry.version.into()),
            fence: asked.fence,
            route: self.policy.route.clone(),
            fingerprint: (!is_released).then_some(asked.fingerprint),
            caller: (!is_released).then_some(asked.caller),
            opened_unix_ms: 0,
            kept: None,
            publication: None,
            extras: Extras::default(),
            state,
        }
    }

    fn held_lock(&self, lock: &Lock) -> record::Held {
        let record = self.lock_record(lock);
        record::Held { record, written_ms: NOW_MS - MOMENT_MS, due_ms: 0, now_ms: NOW_MS }
    }

    fn lock_request(
        &self,
        (operation, fence, was_uncertain): (Operation, u8, bool),
    ) -> LockRequest {
        let operation = self.slots[usize::from(operation)];
        LockRequest { operation, fence: Fence(fence.into()), was_uncertain }
    }

    fn operation_of(&self, slot: Slot) -> Operation {
        self.slots.iter().position(|one| *one == slot).unwrap() as Operation
    }

    fn lock(&self, record: &Record) -> Lock {
        let record::State::Lock(lock) = record.state else { unreachable!("a lock") };
        Lock {
            version: small(record.version),
            fence: record.fence.0 as u8,
            operation: self.operation_of(lock.operation),
            phase: match lock.phase {
                record::LockPhase::Free => Phase::Free,
                record::LockPhase::Looking => Phase::Looking,
                record::LockPhase::Sent => Phase::Sent,
            },
        }
    }

    fn lock_record(&self, lock: &Lock) -> Record {
        let request = self.lock_request((lock.operation, lock.fence, false));
        let (policy, fresh) = (&self.policy, record::Version(lock.version.into()));
        let mut record =
            engine::taken_lock(&request, None, fresh, 0, policy, Duration::ZERO).record;
        if let record::State::Lock(state) = &mut record.state {
            state.phase = match lock.phase {
                Phase::Free => record::LockPhase::Free,
                Phase::Looking => record::LockPhase::Looking,
                Phase::Sent => record::LockPhase::Sent,
            };
        }
        record
    }
}

fn since_ms(age: Age) -> u64 {
    match age {
        Age::Fresh => NOW_MS - MOMENT_MS,
        Age::Rested => NOW_MS - LONG_MS,
    }
}

fn age_of(since_ms: u64) -> Age {
    if since_ms == NOW_MS - LONG_MS { Age::Rested } else { Age::Fresh }
}

fn small(version: record::Version) -> Version {
    Version::try_from(version.0).unwrap()
}

fn entry(record: &Record) -> Entry {
    let stand = match record.state {
        record::State::InFlight { uncertain_since_ms } => {
            Stand::InFlight(uncertain_since_ms.map(age_of))
        }
        record::State::Uncertain { since_ms, retry, .. } => Stand::Uncertain {
            age: since_ms.map_or(Age::Fresh, age_of),
            is_given: since_ms.is_some(),
            retry: retry.map(|lost| lost.0 as u8),
        },
        record::State::Completed { .. } => Stand::Completed,
        record::State::Released => Stand::Released,
        ref other => unreachable!("no rule here writes {}", other.name()),
    };
    Entry { version: small(record.version), fence: record.fence.0 as u8, stand }
}
