//! A gateway on a store that may lose its last writes, with the protection of the Redis store.
//!
//! The product's [`RecentWrites`] decides which writes are kept, and which state prevails after a
//! loss. The protocol around it follows `src/store/redis/recovery.rs` and `write.rs`, with the
//! number of a history in the place of epochs and run ids. A command that was sent to one history
//! is never carried out in the next: it ended with its server.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use onceward::key::Slot;
use onceward::record::{Fence, Held, Lifetime, Record, Version, decode, encode};
use onceward::store::redis::{
    LOSS_PAUSE, RecentWrite, RecentWrites, RestoreDecision, WrittenEvents,
};
use onceward::store::{OutboxEvent, Records, StoreError, Swap};
use tokio::time::{Instant, sleep, timeout};

use super::flaw::Flaw;
use super::link::Link;

/// The interval of checks that the store still has its history, and the delay before a retry.
const PERIOD: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(50);

/// The recent writes of a gateway.
#[derive(Default)]
pub struct Recent {
    writes: RecentWrites,
    standing: Mutex<Standing>,
    /// One task determines the history, and the others wait.
    finds_out: tokio::sync::Mutex<()>,
}

/// The history for claims. `current` is `None` while it is being determined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Standing {
    current: Option<Known>,
    met_before: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    history: u64,
    quiet_until: Option<Instant>,
}

/// A write in progress.
#[derive(Clone)]
pub struct Change {
    pub slot: Slot,
    pub expected: Option<Version>,
    pub next: Record,
    pub lifetime: Lifetime,
    /// The events for sinks. A store that loses writes has none.
    pub outbox: Vec<OutboxEvent>,
}

impl Recent {
    fn current(&self) -> Option<Known> {
        self.standing.lock().unwrap().current
    }

    fn doubt(&self, known: &Known) {
        self.standing.lock().unwrap().current.take_if(|current| current == known);
    }
}

fn not_yet() -> StoreError {
    StoreError::NotApplied("what the store holds is not known yet".into())
}

impl Link {
    /// Determines the history for claims, as long as the process lives.
    pub async fn keep_watch(&self) {
        loop {
            let begun = Instant::now();
            let history = self.reach(|world| Ok(world.history())).await;
            match (history, self.recent.current()) {
                (Ok(history), Some(known)) if known.history == history => {
                    self.recent.writes.note_intact(begun)
                }
                (_, Some(known)) => self.recent.doubt(&known),
                _ => {}
            }
            if self.recent.current().is_none() && self.find_out().await.is_err() {
                sleep(AGAIN).await;
                continue;
            }
            // Gateways notice it at different times.
            sleep(PERIOD.mul_f64(self.world.dice.span(500, 1500).as_secs_f64())).await;
        }
    }

    async fn standing(&self) -> Result<Known, StoreError> {
        match self.recent.current() {
            Some(known) => Ok(known),
            None => {
                timeout(self.patience(), self.find_out()).await.unwrap_or_else(|_| Err(not_yet()))
            }
        }
    }

    fn patience(&self) -> Duration {
        self.world.plan.patience.unwrap_or(PERIOD)
    }

    async fn find_out(&self) -> Result<Known, StoreError> {
        let _one = self.recent.finds_out.lock().await;
        if let Some(known) = self.recent.current() {
            return Ok(known);
        }
        let history = self.reach(|world| Ok(world.history())).await?;
        let met_before = self.recent.standing.lock().unwrap().met_before;
        if met_before {
            let partitions: HashSet<u16> = self.world.slots.iter().map(Slot::partition).collect();
            let mut held = self.recent.writes.in_partitions(&partitions);
            held.sort_by_key(|(slot, _)| self.world.key_of(slot));
            for (slot, holding) in held {
                self.assert_one(slot, &holding).await?;
            }
        }
        if self.world.history() != history {
            return Err(not_yet());
        }
        // A single gateway needs no time for others to notice.
        let waits = met_before && self.world.plan.gateways > 1;
        let known = Known { history, quiet_until: waits.then(|| Instant::now() + LOSS_PAUSE) };
        *self.recent.standing.lock().unwrap() = Standing { current: Some(known), met_before: true };
        Ok(known)
    }

    async fn assert_one(&self, slot: Slot, holding: &RecentWrite) -> Result<(), StoreError> {
        let mut record = decode(&holding.encoded.head, holding.encoded.payload.clone())?;
        let mut expected = None;
        loop {
            let (next, lifetime) = (record.clone(), holding.lifetime);
            let swapped = self
                .reach(move |world| world.carry_out(&slot, expected, &next, lifetime, &[]))
                .await?;
            let stands = match swapped {
                Swap::Stored => {
                    self.world.is_acknowledged(&slot, &record);
                    self.recent.writes.record_confirmed(
                        &slot,
                        &record,
                        encode(&record),
                        lifetime,
                        WrittenEvents::default(),
                    );
                    self.world.count("store: gets a lost write again");
                    return Ok(());
                }
                Swap::Large(_) => unreachable!("the simulated store has no large records"),
                Swap::Stale(None) => {
                    expected = None;
                    continue;
                }
                Swap::Stale(Some(stands)) => stands.record,
            };
            match holding.restore_decision(&stands) {
                RestoreDecision::OverEarlierState(version) => expected = Some(version),
                RestoreDecision::UnderNewVersion(version)
                    if !self.world.has(Flaw::MarkersPrevail) =>
                {
                    expected = Some(version);
                    record = Record { version: Version(self.world.dice.next()), ..record };
                    self.world.count("store: a marker gives way");
                }
                RestoreDecision::Obsolete if stands.is_same_state(&record) => return Ok(()),
                _ => {
                    self.recent.writes.remove_superseded(&slot, holding.version());
                    return Ok(());
                }
            }
        }
    }

    /// Writes a claim: only under the known history, and not while new operations are refused.
    pub async fn claim(&self, change: Change) -> Result<Swap, StoreError> {
        loop {
            let known = self.standing().await?;
            if known.quiet_until.is_some_and(|until| Instant::now() < until) {
                return match self.load(&change.slot).await? {
                    Some(stands) if change.expected != Some(stands.record.version) => {
                        Ok(Swap::Stale(Some(stands)))
                    }
                    _ => Err(not_yet()),
                };
            }
            if self.world.history() != known.history {
                self.recent.doubt(&known);
                continue;
            }
            let swapped = self.command(&change).await;
            if matches!(swapped, Err(StoreError::MaybeApplied(_)))
                && self.world.has(Flaw::HoldsUnanswered)
            {
                self.acknowledge(&change);
            }
            return match swapped? {
                Swap::Stored => self.keep(&change, Some(known)),
                stale => Ok(stale),
            };
        }
    }

    /// Writes anything except a claim. If the record that it names was lost with others, that
    /// record is written again first.
    pub async fn change(&self, change: Change) -> Result<Swap, StoreError> {
        loop {
            let is_own = |holding: &RecentWrite| {
                holding.fence() == change.next.fence
                    && change.expected.is_none_or(|expected| !holding.follows(expected))
            };
            let before =
                if change.expected.is_none() || self.recent.writes.holds(&change.slot, is_own) {
                    self.recent.current()
                } else {
                    // The decision used a record that may be an earlier state of the lost one.
                    let known = self.standing().await?;
                    if known.quiet_until.is_some_and(|until| Instant::now() < until) {
                        return Err(not_yet());
                    }
                    if self.world.history() != known.history {
                        self.recent.doubt(&known);
                        continue;
                    }
                    Some(known)
                };
            match self.command(&change).await? {
                Swap::Stored => return self.keep(&change, before),
                Swap::Large(_) => unreachable!("the simulated store has no large records"),
                Swap::Stale(stands) => {
                    if !self.is_missing(&change, stands.as_ref()) || !self.may_have_lost(before) {
                        return Ok(Swap::Stale(stands));
                    }
                }
            }
            self.standing().await?;
        }
    }

    fn is_missing(&self, change: &Change, stands: Option<&Held>) -> bool {
        let prevails =
            |holding: &RecentWrite, stands: &Held| match holding.restore_decision(&stands.record) {
                RestoreDecision::OverEarlierState(_) => true,
                RestoreDecision::UnderNewVersion(_) => !self.world.has(Flaw::MarkersPrevail),
                RestoreDecision::Obsolete | RestoreDecision::BegunAgain => false,
            };
        self.recent.writes.holds(&change.slot, |holding| {
            let is_named =
                Some(holding.version()) == change.expected || holding.fence() == change.next.fence;
            is_named && stands.is_none_or(|stands| prevails(holding, stands))
        })
    }

    fn may_have_lost(&self, before: Option<Known>) -> bool {
        let current = self.recent.current();
        if let Some(known) = current.filter(|known| known.history != self.world.history()) {
            self.recent.doubt(&known);
            return true;
        }
        current.is_none() || current != before
    }

    fn keep(&self, change: &Change, before: Option<Known>) -> Result<Swap, StoreError> {
        self.acknowledge(change);
        self.world.is_acknowledged(&change.slot, &change.next);
        if before.is_some() && self.recent.current() != before {
            return Err(StoreError::MaybeApplied(
                "the server was replaced right after it had confirmed the write".into(),
            ));
        }
        Ok(Swap::Stored)
    }

    fn acknowledge(&self, Change { slot, next, lifetime, .. }: &Change) {
        self.recent.writes.record_confirmed(
            slot,
            next,
            encode(next),
            *lifetime,
            WrittenEvents::default(),
        );
    }

    /// An attempt renews its lease.
    pub async fn renews(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let before = self.recent.current();
        self.recent.writes.extend_lease(slot, fence, lease);
        let renewed = self.renewal(slot, fence, lease, keep).await?;
        let held = |holding: &RecentWrite| holding.fence() == fence;
        if !renewed && self.recent.writes.holds(slot, held) && self.may_have_lost(before) {
            return Err(StoreError::NotApplied(
                "the store has lost the claim and other records".into(),
            ));
        }
        Ok(renewed)
    }
}
