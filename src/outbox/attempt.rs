//! One attempt to deliver an event, from the event to its removal, its next attempt, or its burial.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::call::{CallAttempt, is_look};
use super::conclusion::{Conclusion, FailureReport};
use super::delivery::Delivery;
use super::ownership::RunningAttempt;
use super::report::AttemptsReport;
use super::rules::{FailedAttempt, NextStep, counted_pause, is_counted_before, next_step};
use super::shared::RelayShared;
use super::sink::{Sink, SinkChannel};
use super::states::{Pause, SinkStates};
use crate::event::EventDraft;
use crate::store::StoreError;
use crate::store::dead_letters::{Burial, DeadLetterKind};
use crate::store::outbox::{DeliveryAttempts, EventContent, WaitingEvent};
use crate::telemetry::DeliveryResult;

/// Pauses before a store call is repeated, after which the attempt is left as it is: the event is
/// due again when its pause or the lease ends.
const STORE_RETRIES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// Pause after a store call that failed before an attempt. Without it, the event would be read
/// again at once.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The members of an event that an attempt needs.
#[derive(Deserialize)]
struct EventHead {
    id: String,
}

/// An event that is due, in the hands of the relay.
pub(super) struct DeliveryAttempt {
    pub shared: Arc<RelayShared>,
    pub sink: Arc<Sink>,
    pub event: WaitingEvent,
    /// The store's time when the event was read, in ms since 1970.
    pub read_ms: u64,
    /// Time of that read, by the gateway's clock.
    pub read_boot_ms: u64,
    pub running: RunningAttempt,
}

impl DeliveryAttempt {
    /// Makes the attempt. Returns whether this relay still owns the partition.
    pub async fn run(self) -> bool {
        self.attempt().await || self.owns_partition().await
    }

    /// Makes the attempt. Returns false if a change found that the event does not wait any more, or
    /// that another relay owns the partition.
    async fn attempt(&self) -> bool {
        let (draft, delivery) = match self.readable() {
            Ok(readable) => readable,
            Err(error) => {
                return self.conclude(self.event.attempts, Conclusion::unsendable(error)).await;
            }
        };
        let now_ms = self.now_ms();
        let attempts = DeliveryAttempts {
            count: self.event.attempts.count.saturating_add(1),
            first_ms: match self.event.attempts.count {
                0 => now_ms,
                _ => self.event.attempts.first_ms,
            },
        };
        // A look at a call counts nothing.
        let age = Duration::from_millis(now_ms.saturating_sub(self.event.written_ms));
        let is_counted = is_counted_before(attempts.count, age);
        if is_counted && !is_look(&draft, self.event.round) {
            let settings = &self.sink.settings;
            let pause = counted_pause(&settings.retry, settings.timeout, attempts.count);
            match self.postpone(attempts, pause).await {
                Ok(true) if self.running.may_send() => {}
                // The store call took long. The event is due again after its pause.
                Ok(true) => return true,
                Ok(false) => return false,
                Err(_) => return self.conclude(attempts, Conclusion::StoreAway).await,
            }
        }
        let settings = &self.sink.settings;
        let conclusion = match &self.sink.channel {
            SinkChannel::Receiver(client) => {
                client.attempt(&delivery, now_ms / 1000, settings.timeout).await.into()
            }
            SinkChannel::Calls(target) => {
                let (shared, event, running) = (&*self.shared, &self.event, &self.running);
                let delivery = &delivery;
                let call =
                    CallAttempt { shared, settings, target, event, draft, delivery, running, age };
                call.run().await
            }
        };
        self.conclude(attempts, conclusion).await
    }

    /// Returns whether this relay owns the partition, as the store has it. An event can vanish
    /// although it does: a store that lost its data has no events either. Such an event must not
    /// cost the relay its partition.
    async fn owns_partition(&self) -> bool {
        let outbox = &self.shared.outbox;
        let (fence, partition) = (self.running.fence(), outbox.partition_of(&self.event.key.slot));
        // This changes nothing: the owner stays, whoever it is.
        let owned = outbox.own_partition(partition, fence, Some(fence)).await;
        // Without an answer nothing is lost: every change names the fence.
        owned.unwrap_or(true)
    }

    /// Returns the event as it is stored, and as it is sent.
    fn readable(&self) -> Result<(EventDraft<'_>, Delivery), String> {
        let EventContent::Plain(content) = &self.event.content else {
            return Err("the event is sealed under a key that this gateway does not have".into());
        };
        const MALFORMED: &str = "the stored event is malformed";
        let draft = EventDraft::parse(content).map_err(|_| MALFORMED)?;
        let event = draft.finished(self.event.written_ms);
        let head: EventHead = serde_json::from_slice(&event).map_err(|_| MALFORMED)?;
        Ok((draft, Delivery { event_id: head.id, round: self.event.round, event }))
    }

    /// Applies what the attempt means for the event. Returns as [`DeliveryAttempt::attempt`] does.
    async fn conclude(&self, attempts: DeliveryAttempts, conclusion: Conclusion) -> bool {
        match conclusion {
            Conclusion::Delivered => self.delivered(DeliveryResult::Delivered).await,
            Conclusion::Refused => self.delivered(DeliveryResult::Refused).await,
            Conclusion::Retry { report, retry_after } => {
                self.failed(attempts, report, retry_after).await
            }
            Conclusion::Wait { pause } => self.wait(pause).await,
            Conclusion::Bury { kind: kind @ DeadLetterKind::Gateway, report } => {
                // Nothing was sent in this attempt.
                self.bury(kind, self.event.attempts, None, report).await
            }
            Conclusion::Bury { kind, report } => {
                let now_ms = self.now_ms();
                self.sink.record_failure(&self.event.key.slot, report.status, now_ms);
                self.bury(kind, attempts, Some(now_ms), report).await
            }
            Conclusion::Gone => false,
            Conclusion::StoreAway => {
                tokio::time::sleep(STORE_PAUSE).await;
                true
            }
        }
    }

    async fn delivered(&self, result: DeliveryResult) -> bool {
        let now_ms = self.now_ms();
        self.sink.record_delivery(now_ms);
        let since_change = Duration::from_millis(now_ms.saturating_sub(self.event.written_ms));
        self.shared.meter.delivered(self.sink.name(), result, since_change);
        let (fence, WaitingEvent { key, round, .. }) = (self.running.fence(), &self.event);
        let remove = || self.shared.outbox.remove(fence, key, *round);
        repeated(remove).await.unwrap_or(true)
    }

    /// Postpones an event with an open outcome. The attempt does not count, and the pause does not
    /// age the event.
    async fn wait(&self, pause: Duration) -> bool {
        let DeliveryAttempts { count, first_ms } = self.event.attempts;
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let first_ms = if count == 0 { 0 } else { first_ms.saturating_add(pause_ms) };
        let attempts = DeliveryAttempts { count, first_ms };
        repeated(|| self.postpone(attempts, pause)).await.unwrap_or(true)
    }

    async fn failed(
        &self,
        attempts: DeliveryAttempts,
        report: FailureReport,
        retry_after: Option<Duration>,
    ) -> bool {
        let now_ms = self.now_ms();
        if self.sink.record_failure(&self.event.key.slot, report.status, now_ms) {
            self.pause_gone(now_ms).await;
        }
        let failed = FailedAttempt {
            attempts,
            resumed_ms: self.shared.states().of(self.sink.name()).resumed_ms,
            now_ms,
            retry_after,
            random: self.shared.entropy.next(),
        };
        match next_step(&self.sink.settings.retry, &failed) {
            NextStep::Retry { pause } => {
                self.shared.meter.counted(self.sink.name(), DeliveryResult::Retried);
                tracing::debug!(
                    sink = self.sink.name(),
                    operation = %self.event.key.slot,
                    attempt = attempts.count,
                    status = report.status,
                    error = report.error,
                    "an event was not delivered"
                );
                repeated(|| self.postpone(attempts, pause)).await.unwrap_or(true)
            }
            NextStep::Bury => {
                let kind =
                    if report.is_own { DeadLetterKind::Gateway } else { DeadLetterKind::Receiver };
                self.bury(kind, attempts, Some(now_ms), report).await
            }
        }
    }

    async fn bury(
        &self,
        kind: DeadLetterKind,
        DeliveryAttempts { count, first_ms }: DeliveryAttempts,
        last_ms: Option<u64>,
        failure: FailureReport,
    ) -> bool {
        let report = AttemptsReport {
            first_ms: (count > 0).then_some(first_ms),
            last_ms,
            count,
            status: failure.status,
            answer: failure.answer.map(|answer| String::from_utf8_lossy(&answer).into_owned()),
            error: failure.error,
        };
        self.shared.meter.counted(self.sink.name(), DeliveryResult::Buried);
        tracing::warn!(
            sink = self.sink.name(),
            operation = %self.event.key.slot,
            kind = kind.name(),
            attempts = report.count,
            status = report.status,
            error = report.error,
            "an event is a dead letter now"
        );
        // The report consists of texts and numbers, so it always has a JSON form.
        let report = Bytes::from(serde_json::to_vec(&report).unwrap_or_default());
        let burial = Burial { kind, report: EventContent::Plain(report) };
        let (fence, WaitingEvent { key, round, .. }) = (self.running.fence(), &self.event);
        let bury = || self.shared.outbox.bury(fence, key, *round, &burial);
        repeated(bury).await.unwrap_or(true)
    }

    async fn postpone(
        &self,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        let (fence, WaitingEvent { key, round, .. }) = (self.running.fence(), &self.event);
        self.shared.outbox.postpone(fence, key, *round, attempts, pause).await
    }

    async fn pause_gone(&self, now_ms: u64) {
        let pause = Pause { reason: "gone".to_owned(), by: None, since_ms: now_ms };
        let sink = self.sink.name();
        match SinkStates::pause(&*self.shared.notes, sink, &pause).await {
            Ok(_) => {
                tracing::error!(sink, "the receiver is gone (410): the sink is paused");
                self.shared.states_changed.notify_one();
            }
            Err(error) => tracing::warn!(sink, %error, "a sink could not be paused"),
        }
    }

    /// Returns the store's time, in ms since 1970.
    fn now_ms(&self) -> u64 {
        let passed = self.shared.clock.boot_ms().saturating_sub(self.read_boot_ms);
        self.read_ms.saturating_add(passed)
    }
}

/// Makes a store call, and repeats it if it fails.
async fn repeated<F>(mut call: impl FnMut() -> F) -> Result<bool, StoreError>
where
    F: Future<Output = Result<bool, StoreError>>,
{
    for pause in STORE_RETRIES {
        if let Ok(done) = call().await {
            return Ok(done);
        }
        tokio::time::sleep(pause).await;
    }
    call().await
}
