//! The rules of the outbox: the product's own pure functions, in the model's terms. Each flaw
//! removes one rule.

use std::time::Duration;

use onceward::outbox::rules::{self, FailedAttempt, NextStep, next_step};
use onceward::outbox::settings::RetryRule;
use onceward::outbox::shares::{Share, shares};
use onceward::store::outbox::RelayFence;

use super::state::{AGE, Attempts, LEASE, RELAYS, Waiting};
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
    /// A relay reads the owner of the partition after the relays that attend. So it takes the
    /// partition from an owner that came in between.
    TakesFromNewcomer,
    /// After the end of its lease a relay still believes that it owns its partitions, until it has
    /// read their owners.
    OwnsAfterLeaseEnd,
    /// The lease is not checked again between the counting of a retry and its sending.
    UncheckedAfterCounting,
    /// An attempt is settled although another relay owned the partition meanwhile, because its own
    /// relay has become the owner again. The product's fence names a term of a relay.
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

    /// Whether an attempt is counted before it is sent.
    pub fn is_counted_before(&self, attempts: Attempts, written_ago: Ticks) -> bool {
        rules::is_counted_before(attempts.count.into(), span(written_ago))
    }

    /// The time until a counted attempt is repeated, if nothing is known about its end.
    pub fn counted_pause(&self, attempts: Attempts) -> Ticks {
        whole_ticks(rules::counted_pause(&self.retry, TICK, attempts.count.into()))
    }

    /// Whether a relay may begin an attempt with this rest of its lease.
    pub fn may_begin(&self, lease: Ticks) -> bool {
        rules::may_begin(0, Some(millis(lease)), millis(LEASE))
    }

    /// Whether a relay with this rest of its lease must begin a new term.
    pub fn has_ended(&self, lease: Ticks) -> bool {
        rules::has_ended(0, Some(millis(lease)))
    }

    /// What a relay does with the only partition. `members` has the relays bit by bit.
    pub fn share(&self, own: u8, members: u8, owner: u8) -> Share {
        let fence = |relay: u8| RelayFence(relay.into());
        let attends = (0..RELAYS as u8).filter(|relay| members & 1 << relay != 0);
        let members: Vec<RelayFence> = attends.map(fence).collect();
        shares(fence(own), &members, &[Some(fence(owner))])
    }
}

fn millis(ticks: Ticks) -> u64 {
    span(ticks).as_millis() as u64
}

fn whole_ticks(pause: Duration) -> Ticks {
    (pause.as_millis() / TICK.as_millis()) as Ticks
}
