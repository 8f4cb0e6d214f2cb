//! The rules of the outbox: the product's own decision between retry and burial. Each flaw removes
//! one rule.

use std::time::Duration;

use onceward::outbox::rules::{FailedAttempt, NextStep, longest_pause, next_step};
use onceward::outbox::settings::RetryRule;

use super::state::{AGE, Attempts, Waiting};
use super::store::{TICK, ago, product, span};
use crate::state::Ticks;

/// A removed rule. Each must break a promise of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The event is written in a step of its own, after its record.
    EventAfterRecord,
    /// A relay changes events of a partition that it lost.
    NoFence,
    /// An event is sent before its change has met `ack`.
    SendsBeforeAck,
    /// Events are attempted in the order of their arrival in the store.
    OrderByArrival,
    /// The age of an event counts from its change, and not from its first attempt.
    AgeFromChange,
    /// The message id has no round, so the receiver takes a requeued event for a duplicate.
    RoundNotCounted,
    /// A relay takes a partition from an owner that came after the relay had seen who attends.
    ///
    /// The product has this: `Membership::keep` reads the owners after the relays.
    TakesFromNewcomer,
    /// After the end of its lease a relay still believes that it owns its partitions, until it has
    /// read their owners.
    ///
    /// The product has this: `Ownership::renew` keeps the partitions.
    OwnsAfterLeaseEnd,
    /// The lease is not checked again between the counting of a retry and its sending.
    ///
    /// The product has this: `DeliveryAttempt::run` sends when the counting is confirmed.
    UncheckedAfterCounting,
    /// An attempt is settled although another relay owned the partition meanwhile, because its own
    /// relay has become the owner again.
    ///
    /// The product has this: a fence names a relay, not the time for which it owns a partition.
    SettlesAfterReturn,
}

pub struct Rules {
    pub flaw: Option<Flaw>,
    retry: RetryRule,
}

impl Rules {
    /// With `attempts` 0, an event is buried for its age.
    pub fn new(flaw: Option<Flaw>, attempts: u32) -> Rules {
        let retry = RetryRule { first: TICK, max: TICK, attempts, age: span(AGE) };
        Rules { flaw, retry }
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Whether events are buried only for their age.
    pub fn buries_for_age(&self) -> bool {
        self.retry.attempts == 0
    }

    /// `next_step`, after a failed attempt: the pause, or `None` to bury. `draw` is 0 for the
    /// shortest pause, `u64::MAX` for the longest one.
    pub fn pause(&self, attempts: Attempts, waiting: Option<Waiting>, draw: u64) -> Option<Ticks> {
        let mut counted = product(attempts);
        if let (true, Some(waiting)) = (self.has(Flaw::AgeFromChange), waiting) {
            counted.first_ms = ago(waiting.event.written_ago);
        }
        let failed = FailedAttempt {
            attempts: counted,
            resumed_ms: 0,
            now_ms: ago(0),
            retry_after: None,
            random: draw,
        };
        match next_step(&self.retry, &failed) {
            NextStep::Retry { pause } => Some(whole_ticks(pause)),
            NextStep::Bury => None,
        }
    }

    /// The time until a counted attempt is repeated, if nothing is known about its end: its
    /// timeout, and the longest pause after it.
    pub fn counted_pause(&self, attempts: Attempts) -> Ticks {
        whole_ticks(TICK + longest_pause(&self.retry, attempts.count.into()))
    }
}

fn whole_ticks(pause: Duration) -> Ticks {
    (pause.as_millis() / TICK.as_millis()) as Ticks
}
