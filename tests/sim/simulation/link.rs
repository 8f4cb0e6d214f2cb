//! The connection between a gateway and the store, with slow, late, doubled or lost commands and
//! answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use onceward::key::{Scope, Slot, Space};
use onceward::record::{Fence, Held, Lifetime, Record, State, Version};
use onceward::store::{
    DueSagas, Events, ListError, Listing, OutboxEvent, Page, Records, StoreError, Swap, Watch,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::flaw::Flaw;
use super::history::Occurrence;
use super::plan::COMMAND_MAX;
use super::process::Process;
use super::recent::{Change, Recent};
use super::world::World;

/// A gateway's store: the shared one, over a network.
pub struct Link {
    pub world: Arc<World>,
    pub process: Arc<Process>,
    /// The recent writes, where the store may lose its last ones.
    pub recent: Recent,
}

/// The fate of a command.
pub struct Fate {
    name: &'static str,
    /// The time when it is carried out. `None`: never.
    there: Option<Duration>,
    /// The delay after that, after which it is carried out again.
    again: Option<Duration>,
    /// The delay after that, after which its answer arrives. `None`: never.
    back: Option<Duration>,
    /// The time when its sender gets an unknown result. `None`: the sender waits.
    gives_up: Option<Duration>,
    /// Whether its sender gets the result that nothing was written.
    refused: bool,
}

fn unknown() -> StoreError {
    StoreError::MaybeApplied("the answer was lost".into())
}

impl Link {
    /// The fate of a command to a store that works, or stalls.
    fn usual(&self) -> Fate {
        let (world, now) = (&self.world, Instant::now());
        let (there, back) = (world.dice.span(0, 3), world.dice.span(0, 3));
        let gives_up = world.plan.patience;
        let normal = Fate {
            name: "normal",
            there: Some(there),
            again: None,
            back: Some(back),
            gives_up,
            refused: false,
        };
        let stalled =
            world.book().stalled_until.filter(|until| *until > now).map(|until| until - now);
        match stalled {
            Some(stalled) => Fate { name: "stalled", there: Some(stalled + there), ..normal },
            None => normal,
        }
    }

    pub fn fate(&self) -> Fate {
        let (world, now) = (&self.world, Instant::now());
        let dice = &world.dice;
        let normal = self.usual();
        if normal.name == "stalled" {
            return normal;
        }
        let there = normal.there.unwrap_or_default();
        if let Some(until) = self.process.cut_off_until() {
            let after = until - now + there;
            return match dice.below(3) {
                0 => Fate { name: "refused", refused: true, ..normal },
                // A sent command arrives when the partition ends, unless its connection has ended
                // by then.
                1 if after < COMMAND_MAX => Fate {
                    name: "cut off",
                    there: Some(after),
                    ..failing(normal, dice.span(1, 200))
                },
                _ => Fate { name: "cut off", there: None, ..failing(normal, dice.span(1, 200)) },
            };
        }
        if world.is_calm() || !dice.chance(world.plan.rates.store) {
            return normal;
        }
        let early = dice.span(0, 50);
        let long = COMMAND_MAX.as_millis() as u64;
        match dice.below(7) {
            0 => Fate { name: "refused", refused: true, ..normal },
            1 => Fate { name: "lost", there: None, ..failing(normal, early) },
            2 => Fate { name: "answer lost", back: None, ..failing(normal, early) },
            3 => Fate {
                name: "late",
                there: Some(dice.span(0, long)),
                back: None,
                ..failing(normal, early)
            },
            4 => Fate {
                name: "late",
                there: Some(dice.span(100, 5000)),
                back: None,
                ..failing(normal, early)
            },
            // A client sends its command again after its connection broke.
            5 => Fate { name: "doubled", again: Some(dice.span(1, long - 100)), ..normal },
            _ => Fate {
                name: "slow",
                there: Some(dice.span(1, 2000)),
                back: Some(dice.span(1, 2000)),
                ..normal
            },
        }
    }

    /// Sends a command of the gateway itself. The store may stall, and there are no other faults.
    pub async fn reach<T: Send + 'static>(
        &self,
        carry_out: impl Fn(&World) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(self.usual(), carry_out).await
    }

    /// Sends a write.
    pub async fn command(&self, change: &Change) -> Result<Swap, StoreError> {
        let (key, gateway) = (self.world.key_of(&change.slot), self.process.gateway);
        let fate = self.fate();
        let (state, version, fence) =
            (change.next.state.name(), change.next.version, change.next.fence);
        let what = Occurrence::Command {
            verb: "swap",
            state,
            over: change.expected,
            version,
            fence,
            fate: fate.name,
        };
        self.world.note(Some(gateway), key, what);
        if let (State::InFlight { .. }, Some(key)) = (&change.next.state, key) {
            self.world.claims(key, &self.process, fence);
        }
        let Change { slot, expected, next, lifetime, outbox } = change.clone();
        self.send(fate, move |world| world.carry_out(&slot, expected, &next, lifetime, &outbox))
            .await
    }

    /// Sends a renewal.
    pub async fn renewal(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let slot = *slot;
        self.send(self.fate(), move |world| at_once(world.store.renew(&slot, fence, lease, keep)))
            .await
    }

    /// Sends a command that `carry_out` carries out, and waits for its answer.
    pub async fn send<T: Send + 'static>(
        &self,
        fate: Fate,
        carry_out: impl Fn(&World) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let sent = Instant::now();
        self.world.count(match fate.name {
            "normal" => "store: normal",
            "stalled" => "store: stalls",
            "refused" => "store: refuses",
            "cut off" => "store: cut off",
            "lost" => "store: command lost",
            "answer lost" => "store: answer lost",
            "late" => "store: carried out late",
            "doubled" => "store: carried out twice",
            _ => "store: slow",
        });
        if fate.refused {
            sleep(Duration::from_millis(1)).await;
            self.process.runs().await;
            return Err(StoreError::NotApplied("no connection".into()));
        }
        let (reply, answer) = oneshot::channel();
        if let Some(there) = fate.there {
            let world = self.world.clone();
            let history = world.history();
            world.under_way(sent + there + fate.again.unwrap_or_default());
            // A separate task, because the sender may be gone by then.
            tokio::spawn(async move {
                sleep_until(sent + there).await;
                if world.history() != history {
                    return;
                }
                let result = carry_out(&world);
                if let Some(back) = fate.back {
                    sleep(back).await;
                    let _ = reply.send(result);
                }
                if let Some(again) = fate.again {
                    sleep_until(sent + there + again).await;
                    if world.history() == history {
                        let _ = carry_out(&world);
                    }
                }
            });
        }
        let result = match fate.gives_up {
            None => answer.await.unwrap_or(Err(unknown())),
            Some(gives_up) => match timeout_at(sent + gives_up, answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => {
                    sleep_until(sent + gives_up).await;
                    Err(unknown())
                }
                Err(_) => Err(unknown()),
            },
        };
        self.process.runs().await;
        match result {
            Err(StoreError::MaybeApplied(why)) if self.world.has(Flaw::ReportsNotApplied) => {
                Err(StoreError::NotApplied(why))
            }
            result => result,
        }
    }
}

/// A fate without an answer: the sender gives up at its timeout or, without one, when the
/// connection breaks.
fn failing(fate: Fate, breaks: Duration) -> Fate {
    let gives_up = fate.gives_up.or(Some(breaks));
    Fate { back: None, gives_up, ..fate }
}

/// The memory store never waits.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a store in memory answers at once")
}

impl World {
    pub fn carry_out(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        mut lifetime: Lifetime,
        outbox: &[OutboxEvent],
    ) -> Result<Swap, StoreError> {
        let mut expected = expected;
        match &next.state {
            State::InFlight { .. } if self.has(Flaw::LeaseEndIsAbsent) => {
                lifetime.keep = lifetime.due.unwrap_or(lifetime.keep)
            }
            State::Completed { .. }
                if self.has(Flaw::ForgetsResults) && next.fence.0.is_multiple_of(4) =>
            {
                lifetime = Lifetime { keep: Duration::from_secs(5), tombstone: None, ..lifetime };
            }
            State::Released if self.has(Flaw::ForgetsMarkers) => {
                lifetime.keep = Duration::from_millis(1)
            }
            _ => {}
        }
        if self.has(Flaw::IgnoresVersion) {
            expected = at_once(self.store.load(slot))?.map(|held| held.record.version);
        }
        let needs_before = self.plan.loses || self.plan.sinks.is_some();
        let before = if needs_before { at_once(self.store.load(slot))? } else { None };
        let drops = self.has(Flaw::DropsEvents) && self.dice.chance(250);
        let events = Events { outbox: if drops { &[] } else { outbox }, ..Events::NONE };
        let swapped = at_once(self.store.write(slot, expected, next, lifetime, events))?;
        if swapped != Swap::Stored && self.has(Flaw::WritesEventsAlone) {
            self.write_alone(next, lifetime, events);
        }
        let stored = swapped == Swap::Stored;
        let state = next.state.name();
        self.note(
            None,
            self.key_of(slot),
            Occurrence::CarriedOut { state, version: next.version, fence: next.fence, stored },
        );
        if stored {
            self.commits(slot, before.as_ref(), next, outbox);
            // After a loss, a duplicate's marker does not describe the running attempt.
            let own = |before: &Held| {
                before.record.fence == next.fence && before.record.state != State::Released
            };
            let releases = !self.plan.loses || before.as_ref().is_some_and(own);
            self.remember(slot, before.filter(|before| !before.record.is_same_write(next)));
            match (&next.state, self.key_of(slot)) {
                (State::Released, Some(key)) if releases => self.is_released(key),
                (State::InFlight { uncertain_since_ms: Some(_) }, Some(key)) => {
                    self.is_taken_over(key)
                }
                _ => {}
            }
            self.notify_watchers(slot);
        }
        Ok(swapped)
    }

    /// Writes the events of a refused change, with a record that nobody uses.
    fn write_alone(&self, next: &Record, lifetime: Lifetime, events: Events<'_>) {
        if !events.outbox.is_empty() && !next.state.is_unsettled() {
            let key = self.number().to_be_bytes();
            let slot = Slot::of(Space::Enforced, "other", &Scope::of_fields([]), &key, b"");
            at_once(self.store.write(&slot, None, next, lifetime, events)).unwrap();
        }
    }

    /// Messages to watchers are lost too.
    fn notify_watchers(&self, slot: &Slot) {
        let processes: Vec<_> =
            self.book().gateways.iter().map(|gateway| gateway.process.clone()).collect();
        for process in processes {
            if process.cut_off_until().is_none() && !self.dice.chance(self.plan.rates.store) {
                process.notify(slot);
            }
        }
    }
}

#[async_trait]
impl Records for Link {
    /// Events of the log are not simulated.
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        self.process.runs().await;
        let (key, in_flight) =
            (self.world.key_of(slot), matches!(next.state, State::InFlight { .. }));
        let outbox = events.outbox.to_vec();
        let change = Change { slot: *slot, expected, next: next.clone(), lifetime, outbox };
        let result = match (self.world.plan.loses, in_flight) {
            (false, _) => self.command(&change).await,
            (true, true) => self.claim(change).await,
            (true, false) => self.change(change).await,
        };
        self.world.strike(&self.process, key);
        if in_flight && matches!(result, Ok(Swap::Stored)) {
            self.world.strike_claimant(&self.process, key);
        }
        self.process.runs().await;
        result
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.process.runs().await;
        let slot = *slot;
        self.send(self.fate(), move |world| at_once(world.store.load(&slot))).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.process.runs().await;
        let slot = *slot;
        self.send(self.fate(), move |world| at_once(world.store.remains(&slot))).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.process.runs().await;
        let keep = if self.world.has(Flaw::LeaseEndIsAbsent) { lease } else { keep };
        match self.world.plan.loses {
            false => self.renewal(slot, fence, lease, keep).await,
            true => self.renews(slot, fence, lease, keep).await,
        }
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.process.runs().await;
        self.send(self.fate(), move |world| at_once(world.store.due(limit))).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.process.runs().await;
        self.send(self.fate(), move |world| at_once(world.store.due_sagas(limit))).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.process.runs().await;
        let cursor = cursor.map(str::to_owned);
        self.send(self.fate(), move |world| {
            Ok(at_once(world.store.list(listing, cursor.as_deref(), limit)))
        })
        .await?
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.process.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.process.runs().await;
        Ok(())
    }
}
