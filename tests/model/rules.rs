//! The rules of the model: the product's own `admit`, `claim`, `settle`, `expire` and `decide`,
//! called with real records. Each flaw beside them removes one rule.

use std::time::Duration;

use onceward::engine::{
    self, Admission, Claim, ClaimOver, Decision, DuplicateRefusal, Policy, Settlement,
};
use onceward::record::{self, Fence};

use crate::bridge::{Bridge, TICK, ago, policy, small_version, ticks};
use crate::state::{Answer, Entry, Held, Next, Outcome, Stand, Ticks, Version, Who};

/// A lease. Three ticks, because the send rule needs a third of it.
pub const LEASE: Ticks = 3;
/// The time in which a claim may be used to send: a third of the lease must remain.
pub const SEND_SPAN: Ticks = LEASE / 3 * 2;
/// The time before an uncertain operation may be released.
pub const UNCERTAIN_AFTER: Ticks = 1;
/// The time that a request may wait in the upstream's queue. A longer time breaks the first
/// promise, as documented.
pub const QUEUE: Ticks = UNCERTAIN_AFTER;
/// The time that a store command may take: as long as a marker lives, the longest time that the
/// engine allows.
pub const COMMAND: Ticks = 2;
/// The lifetime of unsettled records under [`Flaw::UnsettledExpiresEarly`].
const EARLY: Ticks = LEASE + 1;

/// A removed rule. Each must break a promise of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// A write does not compare the fence.
    NoFence,
    /// A claim permits sending for ever.
    NoSendRule,
    /// The send rule's clock stops with the process.
    ClockStops,
    /// The send rule counts from the claim's answer rather than from before its command.
    CountsFromTheAnswer,
    /// The send rule is checked only before the first byte.
    LaterBytesUnchecked,
    /// A claim without an answer counts as successful.
    NoReadBack,
    /// An uncertain operation may be released at once.
    NoUncertainAfter,
    /// `uncertain_after` is checked when a probe's answer is used, not when the probe is sent.
    EarlyProbeBelieved,
    /// An attempt from uncertain that the upstream did not execute leaves a marker, like any other
    /// attempt.
    AttemptLeavesLess,
    /// The end of a lease frees the key.
    LeaseEndIsAbsent,
    /// Unsettled records expire while they are needed.
    UnsettledExpiresEarly,
    /// A stale completion answers its own copy.
    StaleAnswersOwnCopy,
    /// A stale completion answers the stored result, also to a caller that does not own it.
    StaleIgnoresCaller,
    /// The client gets the answer before it is stored.
    AnswersBeforeStoring,
    /// A claim replaces another's marker of any version.
    MarkerWithoutVersion,
    /// An attempt from uncertain that was sent and lost keeps the time of the earlier uncertainty.
    LostAttemptKeepsOldTime,
    /// A claim without an answer is tried again, and the send rule counts from the later try.
    RetryCountsAnew,
    /// All tries to write a marker over nothing use one version, even if the slot changed in
    /// between.
    MarkerVersionRepeats,
    /// An expired lease is renewed between a sweeper's read and its write.
    RenewsEndedLease,
    /// A claim is given up beside a second claim of the same request, under the same fence.
    GivesUpBesideNewClaim,
}

/// The policy for a duplicate of an uncertain operation. The engine evaluates it as a hold; the
/// model decides the rest when the upstream checks and when its answer arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUncertain {
    Hold,
    /// Asks the upstream whether it executed the operation, and runs it if not.
    Probe,
    /// Runs again, as an upstream that deduplicates allows.
    Forward,
}

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    Run,
    Claim(Option<Version>),
    Replay(Answer),
    Wait,
    MarkUncertain,
    /// The outcome is unknown, since this number of ticks.
    Doubt(Ticks),
    Nothing,
}

/// The change to the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    Write(Next),
    Done,
    Stale,
}

/// The rules, with their inputs.
pub struct Rules {
    pub flaw: Option<Flaw>,
    policy: Policy,
    bridge: Bridge,
}

impl Rules {
    pub fn new(flaw: Option<Flaw>) -> Rules {
        let mut policy = policy();
        match flaw {
            Some(Flaw::NoUncertainAfter) => policy.uncertain_after = Duration::ZERO,
            Some(Flaw::UnsettledExpiresEarly) => {
                policy.unsettled_retention = TICK * u32::from(EARLY)
            }
            _ => {}
        }
        Rules { flaw, policy, bridge: Bridge::new() }
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// `admit`, with the uncertainty that `on_uncertain` decides about.
    pub fn admit(&self, held: Option<&Held>, fence: u8, who: Who) -> May {
        let asked = self.bridge.asked(fence, who);
        let current = held.map(|held| self.bridge.held(held));
        match engine::admit(current.as_ref(), &asked, &self.policy) {
            Admission::Run => May::Run,
            Admission::Claim(over) => May::Claim(over.version().map(small_version)),
            Admission::Replay(reply) => May::Replay(self.bridge.answer(&reply)),
            Admission::Wait => May::Wait,
            Admission::MarkUncertain if self.has(Flaw::LeaseEndIsAbsent) => {
                May::Claim(held.map(|held| held.entry.version))
            }
            Admission::MarkUncertain => May::MarkUncertain,
            Admission::Refuse(DuplicateRefusal::OutcomeUncertain { .. }) | Admission::Probe => {
                May::Doubt(held.map_or(0, Held::uncertain_for))
            }
            Admission::Refuse(_) => May::Nothing,
        }
    }

    /// `claim`, over nothing, a marker or an uncertain record.
    pub fn claim(
        &self,
        fence: u8,
        who: Who,
        over: Option<Version>,
        fresh: Version,
        doubt: Option<Ticks>,
    ) -> Next {
        let over = match (over.map(|over| record::Version(u64::from(over))), doubt) {
            (None, _) => ClaimOver::Nothing,
            (Some(version), None) => ClaimOver::Marker(version),
            (Some(version), Some(age)) => {
                ClaimOver::Uncertain { version, since_ms: ago(age), opened_unix_ms: 0 }
            }
        };
        let fresh = record::Version(u64::from(fresh));
        self.bridge.next(engine::claim(
            &self.bridge.asked(fence, who),
            over,
            fresh,
            0,
            &self.policy,
        ))
    }

    /// `settle`.
    pub fn settle(
        &self,
        current: Option<Entry>,
        claim: Entry,
        outcome: Outcome,
        fresh: Version,
    ) -> Becomes {
        let Entry { mut fence, mut stand, .. } = claim;
        match self.flaw {
            Some(Flaw::AttemptLeavesLess)
                if matches!(outcome, Outcome::NeverSent | Outcome::Declined) =>
            {
                stand = Stand::InFlight(None);
            }
            Some(Flaw::NoFence) => fence = current.map_or(fence, |entry| entry.fence),
            _ => {}
        }
        let doubt = match claim.stand {
            Stand::InFlight(doubt) => doubt,
            _ => None,
        };
        let claim = Entry { stand, ..claim };
        let record = current.map(|entry| self.bridge.record(&entry));
        let settled = self.bridge.outcome(outcome, claim.fence);
        let claim = Claim { fence: Fence(u64::from(fence)), record: self.bridge.record(&claim) };
        match engine::settle(
            record.as_ref(),
            &claim,
            &settled,
            &self.policy,
            record::Version(u64::from(fresh)),
        ) {
            Settlement::Write(next) => {
                let mut next = self.bridge.next(next);
                if outcome == Outcome::InDoubt {
                    self.keep_old_time(&mut next, doubt);
                }
                Becomes::Write(next)
            }
            Settlement::Done => Becomes::Done,
            Settlement::Stale => Becomes::Stale,
        }
    }

    /// `expire`.
    pub fn expire(&self, held: &Held) -> Option<Next> {
        if self.has(Flaw::LeaseEndIsAbsent) {
            return None;
        }
        let mut next = self.bridge.next(engine::expire(&self.bridge.held(held), &self.policy)?);
        if let Stand::InFlight(doubt) = held.entry.stand {
            self.keep_old_time(&mut next, doubt);
        }
        Some(next)
    }

    /// `decide`: an operator's resolution of an uncertain operation, or that of a probe that found
    /// it.
    pub fn resolve(&self, held: &Held, fence: u8, answer: Answer) -> Option<Next> {
        self.decide(held, Decision::Resolve(self.bridge.reply(answer)), fence)
    }

    /// `decide`: for an operator who knows that the upstream did not execute the operation.
    pub fn release(&self, held: &Held, fence: u8) -> Option<Next> {
        self.decide(held, Decision::Release, fence)
    }

    /// Whether an `absent` is valid, if the probe was sent this long after the outcome became
    /// uncertain.
    pub fn absent_is_believed(&self, uncertain_for: Ticks) -> bool {
        TICK * u32::from(uncertain_for) >= self.policy.uncertain_after
    }

    /// The lifetime of an unsettled record.
    pub fn unsettled_keep(&self) -> Ticks {
        ticks(self.policy.unsettled_retention)
    }

    fn decide(&self, held: &Held, decision: Decision, fence: u8) -> Option<Next> {
        let next = engine::decide(
            &self.bridge.held(held),
            decision,
            Fence(u64::from(fence)),
            &self.policy,
        )
        .ok()?;
        Some(self.bridge.next(next))
    }

    fn keep_old_time(&self, next: &mut Next, doubt: Option<Ticks>) {
        if let Stand::Uncertain(since) = &mut next.entry.stand
            && self.has(Flaw::LostAttemptKeepsOldTime)
            && doubt.is_some()
        {
            *since = doubt;
        }
    }
}
