//! The round of a dead letter that waits again.

use super::note::{CallNote, RoundState};
use crate::event::EventDraft;
use crate::key::Slot;
use crate::outbox::report::AttemptsReport;
use crate::record::State;
use crate::store::dead_letters::{DeadLetter, DeadLetterKind, RoundChange};
use crate::store::outbox::EventContent;

/// What a requeue needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequeueRule {
    /// It begins this round.
    Begin(RoundChange),
    /// It depends on the record of this operation: see [`RequeueRule::after_look`].
    Look(Slot),
    /// The outcome of the last round can't be known any more. See [`RequeueRule::again`].
    Unknown,
}

impl RequeueRule {
    /// Returns the rule for a dead letter.
    ///
    /// A call goes on in its round if it was released or never sent, and begins a new round if the
    /// last one never began. It also begins one if the gateway refused every call of the last one:
    /// the same request would be refused again. Every other delivery begins a new round.
    pub fn of(letter: &DeadLetter) -> RequeueRule {
        // An event that can't be opened stays in its round: it may have a note.
        let EventContent::Plain(content) = &letter.content else {
            return RequeueRule::Begin(RoundChange::same(letter));
        };
        let draft = EventDraft::parse(content);
        let note = draft.ok().and_then(|draft| CallNote::of(&draft));
        let Some(note) = note.filter(|note| note.round == letter.round) else {
            return RequeueRule::Begin(RoundChange::next(letter));
        };
        match note.state {
            RoundState::TakenBack if note.is_untried => {
                RequeueRule::Begin(RoundChange::next(letter))
            }
            RoundState::TakenBack => RequeueRule::Begin(RoundChange::same(letter)),
            // A stored answer made it a dead letter, so the operation is completed.
            RoundState::Began if has_answer(letter) => {
                RequeueRule::Begin(RoundChange::next(letter))
            }
            RoundState::Began | RoundState::OutcomeExpired => Slot::from_reference(&note.operation)
                .map_or(RequeueRule::Unknown, RequeueRule::Look),
        }
    }

    /// Returns the rule, given the record of the operation or its tombstone. An operation that was
    /// refused lets a new round begin. One that succeeded has its outcome: the event is delivered.
    /// Until there is an outcome, the requeue only waits for it.
    pub fn after_look(letter: &DeadLetter, record: Option<&State>) -> RequeueRule {
        match record {
            Some(State::Completed { reply, .. }) if reply.status.is_success() => {
                RequeueRule::Begin(RoundChange::same(letter))
            }
            Some(State::Completed { .. }) => RequeueRule::Begin(RoundChange::next(letter)),
            Some(State::InFlight { .. } | State::Uncertain { .. } | State::Released) => {
                RequeueRule::Begin(RoundChange::same(letter))
            }
            // A call has none of the other states in its slot.
            Some(
                State::Expired
                | State::Saga { .. }
                | State::Barred
                | State::Lock(_)
                | State::Review { .. }
                | State::Versions { .. },
            )
            | None => RequeueRule::Unknown,
        }
    }

    /// Returns the round of a call that is made again on purpose, although the outcome of the last
    /// round is unknown.
    pub fn again(letter: &DeadLetter) -> RoundChange {
        RoundChange::next(letter)
    }
}

/// Returns whether a dead letter has the status of an answer that did not take the round back.
fn has_answer(letter: &DeadLetter) -> bool {
    let EventContent::Plain(report) = &letter.burial.report else { return false };
    let report = serde_json::from_slice::<AttemptsReport>(report).ok();
    letter.burial.kind == DeadLetterKind::Receiver
        && report.is_some_and(|report| report.status.is_some())
}
