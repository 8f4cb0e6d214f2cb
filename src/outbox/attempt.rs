//! One attempt to deliver an event, from the event to its removal, its next attempt, or its burial.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::delivery::{AttemptResult, Delivery};
use super::ownership::RunningAttempt;
use super::rules::{FailedAttempt, NextStep, longest_pause, next_step};
use super::shared::RelayShared;
use super::sink::Sink;
use super::states::{Pause, SinkStates};
use crate::event::finished;
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

/// Age of an event, in ms, from which its first attempt is counted before it begins. Younger events
/// are attempted with one store call less.
const COUNTED_AFTER_MS: u64 = 5_000;

/// The attempts of an event when it was buried, as a dead letter keeps them (JSON).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptsReport {
    /// Time of the first attempt, in ms since 1970; `None` if there was no attempt.
    pub first_ms: Option<u64>,
    /// Time of the last attempt, in ms since 1970.
    pub last_ms: Option<u64>,
    /// Number of attempts.
    pub count: u32,
    /// The status of the last answer.
    pub status: Option<u16>,
    /// The first bytes of the last answer. Bytes that are not text are replaced.
    pub answer: Option<String>,
    /// Why there is no answer, or why the event can't be sent.
    pub error: Option<String>,
}

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
        let delivery = match self.delivery() {
            Ok(delivery) => delivery,
            Err(error) => return self.bury_unsendable(error).await,
        };
        let now_ms = self.now_ms();
        let attempts = DeliveryAttempts {
            count: self.event.attempts.count.saturating_add(1),
            first_ms: match self.event.attempts.count {
                0 => now_ms,
                _ => self.event.attempts.first_ms,
            },
        };
        // A retry is counted before it begins. So an event that brings the process down is buried
        // one day, and not tried for ever. A first attempt is counted only if the event is old: the
        // process may have gone down in an earlier first attempt.
        let age_ms = now_ms.saturating_sub(self.event.written_ms);
        if attempts.count > 1 || age_ms > COUNTED_AFTER_MS {
            let settings = &self.sink.settings;
            let pause = settings.timeout + longest_pause(&settings.retry, attempts.count);
            match self.postpone(attempts, pause).await {
                Ok(true) if self.running.may_send() => {}
                // The store call took long. The event is due again after its pause.
                Ok(true) => return true,
                Ok(false) => return false,
                Err(_) => {
                    tokio::time::sleep(STORE_PAUSE).await;
                    return true;
                }
            }
        }
        let timeout = self.sink.settings.timeout;
        let result = self.sink.client.attempt(&delivery, now_ms / 1000, timeout).await;
        let is_owner = match result {
            AttemptResult::Delivered { .. } => self.delivered().await,
            AttemptResult::Refused { .. } | AttemptResult::Failed { .. } => {
                self.failed(attempts, result).await
            }
        };
        drop(self.running);
        is_owner
    }

    /// Returns the event as it is sent.
    fn delivery(&self) -> Result<Delivery, &'static str> {
        let EventContent::Plain(content) = &self.event.content else {
            return Err("the event is sealed under a key that this gateway does not have");
        };
        const MALFORMED: &str = "the stored event is malformed";
        let event = finished(content, self.event.written_ms).map_err(|_| MALFORMED)?;
        let head: EventHead = serde_json::from_slice(&event).map_err(|_| MALFORMED)?;
        Ok(Delivery { event_id: head.id, round: self.event.round, event })
    }

    async fn delivered(&self) -> bool {
        let now_ms = self.now_ms();
        self.sink.record_delivery(now_ms);
        let since_change = Duration::from_millis(now_ms.saturating_sub(self.event.written_ms));
        self.shared.meter.delivered(self.sink.name(), since_change);
        let remove = || self.shared.outbox.remove(self.running.fence(), &self.event.key);
        repeated(remove).await.unwrap_or(true)
    }

    async fn failed(&self, attempts: DeliveryAttempts, result: AttemptResult) -> bool {
        let now_ms = self.now_ms();
        let (status, answer, error, retry_after) = match result {
            AttemptResult::Delivered { status } => (status, None, None, None),
            AttemptResult::Refused { status, answer, retry_after } => {
                (Some(status), Some(answer), None, retry_after)
            }
            AttemptResult::Failed { error } => (None, None, Some(error), None),
        };
        if self.sink.record_failure(&self.event.key.slot, status, now_ms) {
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
                    status,
                    error,
                    "an event was not delivered"
                );
                repeated(|| self.postpone(attempts, pause)).await.unwrap_or(true)
            }
            NextStep::Bury => {
                let report = AttemptsReport {
                    first_ms: Some(attempts.first_ms),
                    last_ms: Some(now_ms),
                    count: attempts.count,
                    status,
                    answer: answer.map(|answer| String::from_utf8_lossy(&answer).into_owned()),
                    error,
                };
                self.bury(DeadLetterKind::Receiver, &report).await
            }
        }
    }

    async fn bury_unsendable(&self, error: &str) -> bool {
        let DeliveryAttempts { count, first_ms } = self.event.attempts;
        let report = AttemptsReport {
            first_ms: (count > 0).then_some(first_ms),
            count,
            error: Some(error.to_owned()),
            ..AttemptsReport::default()
        };
        self.bury(DeadLetterKind::Gateway, &report).await
    }

    async fn bury(&self, kind: DeadLetterKind, report: &AttemptsReport) -> bool {
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
        let report = Bytes::from(serde_json::to_vec(report).unwrap_or_default());
        let burial = Burial { kind, report: EventContent::Plain(report) };
        let bury = || self.shared.outbox.bury(self.running.fence(), &self.event.key, &burial);
        repeated(bury).await.unwrap_or(true)
    }

    async fn postpone(
        &self,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        self.shared.outbox.postpone(self.running.fence(), &self.event.key, attempts, pause).await
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
