//! One saga that this gateway runs: carries out what the machine decides, and writes the log before
//! each effect.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, sleep_until};

use super::changes::SagaMark;
use super::count::SagaCount;
use super::document::SagaDocument;
use super::ending::{PROBLEM, ending_reply};
use super::log::{StepDirection, StepFailure};
use super::machine::{Happening, SagaTodo, StateChange, apply, decide, is_evidence_due};
use super::plan::{Compensation, StepRequest};
use super::render::{condition, request_of};
use super::report::summary;
use super::shared::SagasState;
use super::status::{SagaStatus, is_barred};
use super::step_call::{CarriedOut, StepCall, carry_out};
use super::trace::SagaTrace;
use crate::event::ChangedSaga;
use crate::gate::{Gate, NextSaga, OwnedSaga, SagaWrite};
use crate::key::Slot;
use crate::record::SagaPhase;
use crate::store::Watch;
use crate::telemetry::SagaMeter;

/// Longest pause between two looks at a saga that waits. Times that the machine names come earlier.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// An operation of a step: the step, the direction and the generation.
type Operation = (usize, StepDirection, u32);

/// A saga that this gateway runs.
pub(super) struct RunningSaga {
    sagas: Arc<SagasState>,
    owned: OwnedSaga,
    /// The public id.
    id: String,
    document: SagaDocument,
    count: SagaCount,
    /// The statuses in the record.
    written: SagaMark,
    /// The content of the record.
    stored: Option<Bytes>,
    trace: Option<SagaTrace>,
    /// What has changed since the last write.
    unwritten: StateChange,
    /// The operations that are being called or barred.
    active: HashSet<Operation>,
    calls: FuturesUnordered<BoxFuture<'static, (Operation, CarriedOut)>>,
    /// Watches the record while the saga is stuck, so that an operator's decision is carried out at
    /// once. At other times the next write or renewal finds the decision: a watch would also read
    /// the record after each write of the owner.
    watch: Option<Watch>,
}

/// Whether the saga goes on in this task.
enum Next {
    Continue,
    End,
}

impl RunningSaga {
    /// Reads the record of a saga. Returns its slot if the record can't be read.
    pub fn new(
        sagas: Arc<SagasState>,
        owned: OwnedSaga,
        meter: &SagaMeter,
    ) -> Result<RunningSaga, Slot> {
        let document = owned.content().and_then(|content| SagaDocument::decode(content).ok());
        let document = document.ok_or(owned.slot)?;
        Ok(RunningSaga {
            count: SagaCount::new(meter, &document),
            written: SagaMark::of(&document.log),
            stored: owned.content().cloned(),
            trace: SagaTrace::of(&document, owned.request_span()),
            sagas,
            id: owned.slot.to_string(),
            owned,
            document,
            unwritten: StateChange::Nothing,
            active: HashSet::new(),
            calls: FuturesUnordered::new(),
            watch: None,
        })
    }

    /// Runs the saga until it ends, is lost to another gateway, or the runner stops.
    pub async fn run(mut self) {
        while let Next::Continue = self.advance().await {}
    }

    /// Carries out what there is to do now, and waits for the next event.
    async fn advance(&mut self) -> Next {
        let work = decide(&self.document.plan, &self.document.log, self.now_ms());
        let mut sends = Vec::new();
        for todo in work.todos {
            match todo {
                SagaTodo::Refresh => self.apply(Happening::TimePassed),
                SagaTodo::Begin { step } => {
                    let happening = begin(&self.document, &self.id, step);
                    self.apply(happening);
                }
                SagaTodo::Compensate { step } => {
                    let happening = compensate(&self.document, &self.id, step);
                    self.apply(happening);
                }
                SagaTodo::Settle { completed } => return self.end(completed).await,
                SagaTodo::Call { step, direction, generation, .. }
                | SagaTodo::Bar { step, direction, generation } => {
                    if !self.active.contains(&(step, direction, generation)) {
                        sends.push(todo);
                    }
                }
            }
        }
        if self.unwritten == StateChange::Write {
            return self.write().await;
        }
        if self.sagas.stop.is_cancelled() && self.calls.is_empty() {
            return self.hand_over().await;
        }
        if !self.sagas.stop.is_cancelled() {
            sends.into_iter().for_each(|todo| self.send(todo));
        }
        self.wait(work.wake_ms).await
    }

    fn now_ms(&self) -> u64 {
        self.sagas.time.now_ms()
    }

    fn apply(&mut self, happening: Happening) {
        let now_ms = self.now_ms();
        match apply(&self.document.plan, &mut self.document.log, happening, now_ms) {
            Ok(change) => self.unwritten = self.unwritten.max(change),
            Err(denied) => {
                tracing::debug!(saga = %self.id, %denied, "the saga's state does not permit it");
            }
        }
    }

    /// Begins a call or a bar. Its log entry is written.
    fn send(&mut self, todo: SagaTodo) {
        let Some(gateway) = self.sagas.gateway() else { return };
        let (step, direction, generation, kind) = match todo {
            SagaTodo::Call { step, direction, generation, continues } => {
                let log = &self.document.log;
                let renews = is_evidence_due(log, step, direction, self.now_ms());
                let run = log.steps.get(step).and_then(|step| step.run(direction));
                let only_asks = run.is_some_and(|run| is_barred(log, direction, run));
                let call = StepCall::Send { continues, only_asks, renews };
                (step, direction, generation, call)
            }
            SagaTodo::Bar { step, direction, generation } => {
                (step, direction, generation, StepCall::Bar)
            }
            _ => return,
        };
        let operation = (step, direction, generation);
        self.active.insert(operation);
        let (document, trace) = (&self.document, self.trace.as_ref());
        let call = carry_out(gateway, document, &self.id, operation, kind, trace);
        self.calls.push(call.map(move |outcome| (operation, outcome)).boxed());
    }

    /// Waits for an outcome, the next time of the machine, the renewal, or the stop.
    async fn wait(&mut self, wake_ms: Option<u64>) -> Next {
        let pause = wake_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(self.now_ms())));
        let wake = Instant::now() + pause.unwrap_or(LOOK_MAX).min(LOOK_MAX);
        let renewal = self.owned.renewal();
        let stop = self.sagas.stop.clone();
        self.watch_if_stuck();
        tokio::select! {
            biased;
            Some((operation, carried_out)) = self.calls.next() => {
                self.take(operation, carried_out);
                // Outcomes that came together need one write.
                while let Some(Some((operation, carried_out))) = self.calls.next().now_or_never() {
                    self.take(operation, carried_out);
                }
            }
            () = sleep_until(renewal) => return self.renew().await,
            () = record_change(self.watch.as_mut()) => return self.look().await,
            () = sleep_until(wake) => {}
            () = stop.cancelled(), if self.calls.is_empty() => {}
        }
        Next::Continue
    }

    fn watch_if_stuck(&mut self) {
        if self.document.phase() != SagaPhase::Stuck {
            self.watch = None;
        } else if self.watch.is_none() {
            let gateway = self.sagas.gateway();
            self.watch =
                gateway.map(|gateway| gateway.gate().store().records.watch(&self.owned.slot));
        }
    }

    /// Looks whether an operator has changed the record.
    async fn look(&mut self) -> Next {
        let Some(gateway) = self.sagas.gateway() else { return Next::End };
        let version = self.owned.version();
        if !gateway.gate().reread_saga(&mut self.owned).await {
            return Next::End;
        }
        if self.owned.version() == version { Next::Continue } else { self.reread() }
    }

    fn take(&mut self, operation: Operation, carried_out: CarriedOut) {
        self.active.remove(&operation);
        let (step, direction, generation) = operation;
        let CarriedOut { outcome, is_renewed } = carried_out;
        if is_renewed {
            self.apply(Happening::Renewed { step, direction });
        }
        let random = self.sagas.gateway().map_or(0, |gateway| gateway.gate().entropy().next());
        self.apply(Happening::Outcome { step, direction, generation, outcome, random });
    }

    /// Writes the log.
    async fn write(&mut self) -> Next {
        let Some(gateway) = self.sagas.gateway() else { return Next::End };
        let Some(next) = self.next(gateway.gate()) else { return Next::End };
        let written = gateway.gate().progress_saga(&mut self.owned, next).await;
        self.written(&written)
    }

    fn written(&mut self, written: &SagaWrite) -> Next {
        match written {
            SagaWrite::Stored => {
                self.is_in_record();
                Next::Continue
            }
            SagaWrite::Changed => self.reread(),
            SagaWrite::Lost => Next::End,
        }
    }

    /// Continues from the record that an operator has changed. Outcomes that were not written are
    /// found out again.
    fn reread(&mut self) -> Next {
        // The version alone changes when a duplicate is accepted. Then nothing is lost.
        if self.owned.content() == self.stored.as_ref() {
            return Next::Continue;
        }
        match self.owned.content().and_then(|content| SagaDocument::decode(content).ok()) {
            Some(document) => {
                self.document = document;
                self.is_in_record();
                Next::Continue
            }
            None => Next::End,
        }
    }

    /// Notes that the record has the document.
    fn is_in_record(&mut self) {
        self.export(None);
        self.count.written(&self.document);
        self.written = SagaMark::of(&self.document.log);
        self.unwritten = StateChange::Nothing;
        self.stored = self.owned.content().cloned();
        if let Some(gateway) = self.sagas.gateway() {
            let is_stuck = self.document.phase() == SagaPhase::Stuck;
            gateway.gate().place_saga(&mut self.owned, is_stuck);
        }
    }

    async fn renew(&mut self) -> Next {
        let Some(gateway) = self.sagas.gateway() else { return Next::End };
        // A write renews the lease as well, and takes along what is only in memory.
        if self.unwritten != StateChange::Nothing {
            return self.write().await;
        }
        if !gateway.gate().renew_saga(&mut self.owned).await {
            return Next::End;
        }
        self.look().await
    }

    async fn hand_over(&mut self) -> Next {
        let Some(gateway) = self.sagas.gateway() else { return Next::End };
        let Some(next) = self.next(gateway.gate()) else { return Next::End };
        let written = gateway.gate().hand_saga_over(&mut self.owned, next).await;
        // The next owner finds in the record what this write settles, and does not count it.
        let next = self.written(&written);
        match written {
            SagaWrite::Changed => next,
            // If it failed, the lease ends by itself.
            SagaWrite::Stored | SagaWrite::Lost => Next::End,
        }
    }

    async fn end(&mut self, completed: bool) -> Next {
        let Some(gateway) = self.sagas.gateway() else { return Next::End };
        let ending = {
            let problem_type = gateway.problem_type(PROBLEM);
            let terms = (self.sagas.clock.unix_ms(), &*problem_type);
            ending_reply(&self.document, &self.id, completed, terms)
        };
        let status = if completed { SagaStatus::Completed } else { SagaStatus::Failed };
        let summary = summary(&self.document, Some(status));
        let change = self.change(gateway.gate(), Some(status));
        let (gate, reply) = (gateway.gate(), Arc::new(ending.reply));
        match gate.end_saga(&mut self.owned, reply, &summary, change.as_ref()).await {
            SagaWrite::Changed => self.reread(),
            SagaWrite::Stored => {
                let now_ms = self.now_ms();
                self.export(Some((&self.id, status, now_ms)));
                self.count.ended(&self.document, completed, now_ms);
                if ending.is_unrendered {
                    self.count.unrendered(&self.document);
                }
                Next::End
            }
            SagaWrite::Lost => Next::End,
        }
    }

    /// Exports the spans of what the record settles.
    fn export(&self, end: Option<(&str, SagaStatus, u64)>) {
        if let (Some(trace), Some(gateway)) = (&self.trace, self.sagas.gateway()) {
            trace.export(gateway.observers(), &self.document, &self.written, end);
        }
    }

    /// Returns the next content of the record.
    fn next(&self, gate: &Gate) -> Option<NextSaga> {
        let content = match self.document.encode() {
            Ok(bytes) => bytes.into(),
            Err(error) => {
                tracing::error!(saga = %self.id, %error, "the saga's record can't be made");
                return None;
            }
        };
        let change = self.change(gate, None);
        Some(NextSaga { phase: self.document.phase(), content, change })
    }

    /// Returns what the next record changes, if there is a log or a sink that needs it. `end` is
    /// the status of a saga that ends with it.
    fn change(&self, gate: &Gate, end: Option<SagaStatus>) -> Option<ChangedSaga> {
        let is_needed = gate.event_log_enabled() || self.owned.is_published();
        is_needed.then(|| self.written.change(gate, &self.document, self.now_ms(), end))?
    }
}

/// Returns when the watched record may have changed; never without a watch.
async fn record_change(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Begins the first actions of a saga, which is not stored yet.
pub(super) fn begin_first(document: &mut SagaDocument, id: &str, now_ms: u64) {
    for todo in decide(&document.plan, &document.log, now_ms).todos {
        if let SagaTodo::Begin { step } = todo {
            let happening = begin(document, id, step);
            // An error means that it begins after the claim.
            _ = apply(&document.plan, &mut document.log, happening, now_ms);
        }
    }
}

/// Evaluates the condition of an action, and renders its request.
fn begin(document: &SagaDocument, id: &str, step: usize) -> Happening {
    let direction = StepDirection::Action;
    let Some(planned) = document.plan.steps.get(step) else { return Happening::TimePassed };
    let keys = document.done_keys();
    let scope = document.scope(id, &keys);
    match planned.when.as_deref().map(|when| condition(when, &scope)) {
        Some(Ok(false)) => return Happening::Skipped { step },
        Some(Err(error)) => {
            let why = StepFailure::Condition(error.to_string());
            return Happening::Unsendable { step, direction, why };
        }
        Some(Ok(true)) | None => {}
    }
    begun(document, id, (step, direction), &planned.action)
}

/// Renders the request of a compensation.
fn compensate(document: &SagaDocument, id: &str, step: usize) -> Happening {
    match document.plan.steps.get(step).map(|planned| &planned.compensation) {
        Some(Compensation::Request { request, .. }) => {
            begun(document, id, (step, StepDirection::Compensation), request)
        }
        Some(Compensation::None) | None => Happening::TimePassed,
    }
}

fn begun(
    document: &SagaDocument,
    id: &str,
    (step, direction): (usize, StepDirection),
    request: &StepRequest,
) -> Happening {
    let keys = document.done_keys();
    match request_of(request, &document.scope(id, &keys)) {
        Ok(_) => Happening::Begun { step, direction },
        Err(error) => {
            let why = StepFailure::Unrendered(error.to_string());
            Happening::Unsendable { step, direction, why }
        }
    }
}
