//! The sink that calls an API: an event becomes a request through the gateway's own gate.
//!
//! A *round* of an event is one operation of the gate, so the called API gets its request at most
//! once, by whichever gateway and however often the event is attempted. Before the first claim of a
//! round, the relay notes with the event that the round began. From then on it only looks at the
//! operation, until a released or never-sent outcome takes the note back. Without the note, a round
//! would begin again after its record and its tombstone were deleted.
//!
//! - `request`: the request of a round, made from the event
//! - `note`: the state of a round, as it is kept with the event
//! - `outcome`: what the outcome of a call means for the event
//! - [`requeue`]: which round a requeued event gets

use std::sync::Arc;
use std::time::Duration;

use self::note::{CallNote, CallStep, RoundState};
use self::outcome::{CallConclusion, NoteChange, answered, concluded, is_never_sent, waiting};
use self::request::rendered;
use super::caller::{CallRequest, OperationCaller, SinkCall, call_key};
use super::conclusion::Conclusion;
use super::delivery::Delivery;
use super::ownership::RunningAttempt;
use super::settings::{CallTarget, SinkSettings};
use super::shared::RelayShared;
use crate::event::{EventDraft, HOPS_MAX};
use crate::key::Slot;
use crate::record::State;
use crate::store::StoreError;
use crate::store::outbox::{EventContent, WaitingEvent};

mod note;
mod outcome;
mod request;
pub mod requeue;

/// Pause while a call of this process goes on, or while the process has no routes yet.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// One attempt of a call: it begins a round, or looks at the operation of a round.
pub(super) struct CallAttempt<'a> {
    pub shared: &'a RelayShared,
    pub settings: &'a SinkSettings,
    pub target: &'a CallTarget,
    pub event: &'a WaitingEvent,
    pub draft: EventDraft<'a>,
    pub delivery: &'a Delivery,
    pub running: &'a RunningAttempt,
    /// Time since the change that the event is about.
    pub age: Duration,
}

/// Returns whether an attempt of this event begins no call, but looks at one that began. An event
/// that can't be read is no look.
pub(super) fn only_looks(event: &WaitingEvent) -> bool {
    let EventContent::Plain(content) = &event.content else { return false };
    EventDraft::parse(content).is_ok_and(|draft| is_look(&draft, event.round))
}

/// Returns whether an attempt of this event begins no call, but looks at one that began.
pub(super) fn is_look(draft: &EventDraft<'_>, round: u32) -> bool {
    matches!(CallStep::of(CallNote::of(draft), round), CallStep::Look(_))
}

impl CallAttempt<'_> {
    /// Makes the attempt.
    pub async fn run(self) -> Conclusion {
        let known = self.shared.calls.of(&self.event.key, self.changes());
        // One configuration for the whole attempt: a reload may replace it meanwhile.
        let Some(caller) = self.shared.calls.caller().filter(|_| !known.is_running) else {
            return Conclusion::Wait { pause: BUSY_PAUSE };
        };
        let mut note = CallNote::of(&self.draft);
        // An earlier attempt could not take the note back, and this process remembers it.
        if let Some(note) = &mut note
            && known.never_sent == Some(note.round)
        {
            note.state = RoundState::TakenBack;
            note.is_untried = false;
        }
        match CallStep::of(note, self.event.round) {
            CallStep::Begin => match rendered(self.target, &self.delivery.event) {
                Ok(request) => self.begin(caller, request, true).await,
                Err(error) => Conclusion::unsendable(error.to_string()),
            },
            CallStep::BeginAgain(note) => self.begin(caller, note.request, note.is_untried).await,
            CallStep::Look(note) => self.look(caller, note).await,
        }
    }

    /// Begins a round: notes that it begins, and calls. `is_untried`: see [`CallNote::is_untried`].
    async fn begin(
        &self,
        caller: Arc<dyn OperationCaller>,
        request: CallRequest,
        is_untried: bool,
    ) -> Conclusion {
        if self.draft.head.hops >= HOPS_MAX {
            return Conclusion::unsendable(format!(
                "{HOPS_MAX} calls led to this event, one after the other: they are a circle"
            ));
        }
        // A call that takes longer than an attempt still counts.
        if self.shared.calls.running_of(&self.settings.name) >= self.settings.concurrency {
            return Conclusion::Wait { pause: BUSY_PAUSE };
        }
        let (round, state) = (self.event.round, RoundState::Began);
        let (operation, announced) = (String::new(), Vec::new());
        let unprepared = CallNote { round, state, is_untried, request, operation, announced };
        let call = self.call_of(&unprepared, false);
        let prepared = match caller.prepare(&call) {
            Ok(prepared) => prepared,
            Err(error) => return Conclusion::unsendable(error.to_string()),
        };
        let operation = prepared.operation.to_string();
        let note = CallNote { operation, announced: prepared.announced, ..unprepared };
        match self.keep(&note).await {
            Ok(true) => self.shared.calls.forget(&self.event.key),
            Ok(false) => return Conclusion::Gone,
            Err(_) => {
                // The note may be stored nevertheless.
                self.shared.calls.remember(&self.event.key, self.changes(), round);
                return Conclusion::StoreAway;
            }
        }
        if !self.running.may_send() {
            // The store call took long.
            let later = Conclusion::Wait { pause: BUSY_PAUSE };
            return self.with_change(&note, NoteChange::TakeBack, later).await;
        }
        self.call(caller, call, note).await
    }

    /// Looks at the operation of a round. Its record decides, whatever the configuration is now.
    /// Only an operation without an outcome needs the gate, which may probe it or send it again.
    async fn look(&self, caller: Arc<dyn OperationCaller>, note: CallNote) -> Conclusion {
        let held = match Slot::from_reference(&note.operation) {
            Ok(operation) => self.shared.records.remains(&operation).await,
            Err(_) => Ok(None),
        };
        let Ok(held) = held else { return Conclusion::StoreAway };
        if let Some(State::Completed { reply, .. }) = held.map(|held| held.record.state) {
            return answered(&reply, &note);
        }
        let call = self.call_of(&note, true);
        self.call(caller, call, note).await
    }

    /// Returns the number of changes of the relay's partitions.
    fn changes(&self) -> u64 {
        self.shared.ownership.changes()
    }

    /// Returns the call of a round.
    fn call_of(&self, note: &CallNote, continues: bool) -> SinkCall {
        SinkCall {
            sink: self.settings.name.clone(),
            key: call_key(&self.delivery.event_id, &self.settings.name, note.round),
            hops: self.draft.head.hops + 1,
            continues,
            request: note.request.clone(),
            headers: self.target.headers.clone(),
        }
    }

    /// Makes a call, and returns what its outcome means. A call that takes longer than an attempt
    /// goes on in its own task: without it, a claim could stay behind without an outcome.
    async fn call(
        &self,
        caller: Arc<dyn OperationCaller>,
        call: SinkCall,
        note: CallNote,
    ) -> Conclusion {
        let (continues, changes) = (call.continues, self.changes());
        let running = self.shared.calls.begin(&self.event.key, changes);
        let task = tokio::spawn(async move {
            let outcome = caller.call(call).await;
            let is_never_sent = !continues && outcome.as_ref().map_or(true, is_never_sent);
            running.end(is_never_sent.then_some(note.round));
            outcome
        });
        let outcome = match tokio::time::timeout(self.settings.timeout, task).await {
            Ok(Ok(Ok(outcome))) => outcome,
            // The route was changed. The operation still waits for its outcome.
            Ok(Ok(Err(_))) if continues => return waiting(None, self.age),
            Ok(Ok(Err(error))) => {
                let conclusion = Conclusion::unsendable(error.to_string());
                return self.with_change(&note, NoteChange::TakeBack, conclusion).await;
            }
            // It takes longer than an attempt, or it panicked. The next attempt looks at it.
            Ok(Err(_)) | Err(_) => return Conclusion::Wait { pause: BUSY_PAUSE },
        };
        let CallConclusion { conclusion, change } = concluded(&outcome, &note, continues, self.age);
        self.with_change(&note, change, conclusion).await
    }

    /// Changes the note, before the conclusion takes effect.
    async fn with_change(
        &self,
        note: &CallNote,
        change: NoteChange,
        conclusion: Conclusion,
    ) -> Conclusion {
        let (state, is_untried) = match change {
            NoteChange::Keep => return conclusion,
            NoteChange::TakeBack => (RoundState::TakenBack, false),
            NoteChange::Refuse => (RoundState::TakenBack, note.is_untried),
            NoteChange::Expire => (RoundState::OutcomeExpired, false),
        };
        match self.keep(&CallNote { state, is_untried, ..note.clone() }).await {
            Ok(true) => {
                self.shared.calls.forget(&self.event.key);
                conclusion
            }
            Ok(false) => Conclusion::Gone,
            // The process remembers what it knows. If it ends before it can store that, the event
            // becomes a dead letter rather than a second call.
            Err(_) => {
                if change != NoteChange::Expire {
                    self.shared.calls.remember(&self.event.key, self.changes(), note.round);
                }
                Conclusion::StoreAway
            }
        }
    }

    /// Stores the note with the event. Returns whether the event still waits, and this relay owns
    /// the partition.
    async fn keep(&self, note: &CallNote) -> Result<bool, StoreError> {
        let content = EventContent::Plain(self.draft.with_note(&note.encode()));
        let (outbox, fence) = (&self.shared.outbox, self.running.fence());
        outbox.replace_content(fence, &self.event.key, self.event.round, &content).await
    }
}

#[cfg(test)]
mod tests;
