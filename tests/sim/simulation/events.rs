//! The invariants of events for sinks, and the state of each event that they need.
//!
//! The events that must exist follow from the records that the store carries out, and not from what
//! the gate passes to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::key::Slot;
use onceward::outbox::delivery::Delivery;
use onceward::record::{AnnouncedState, Fence, Held, Record, State};
use onceward::store::dead_letters::{
    Burial, DeadLetterFilter, DeadLetterId, DeadLetterKind, RoundChange,
};
use onceward::store::outbox::{
    DeliveryAttempts, DueEvents, EventKey, EventOrder, OutboxEvent, OutboxWake, RelayFence,
};
use onceward::store::{DeadLetters, Outbox, StoreError};
use tokio::time::Instant;

use super::flaw::Flaw;
use super::history::Occurrence;
use super::link::at_once;
use super::process::{Process, Stand};
use super::sinks::SINKS;
use super::world::World;

pub const NO_EVENT_ALONE: &str = "no event without its change";
pub const REACHES_SINKS: &str =
    "each event of a change is delivered, or a dead letter, or was discarded";
pub const IN_ORDER: &str = "attempts of an operation begin in order";
pub const ONE_AT_A_TIME: &str = "an operation has one attempt under way at a sink";
pub const ONE_CONTENT: &str = "an event has one id and one content";
pub const REALLY_SENT: &str = "an event leaves a round only after an attempt in it";
pub const COUNTS: &str = "backlogs count what is there";

/// Time within which a command counts as carried out when it was sent.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Names an event for one sink. The sink is a place in [`SINKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventName {
    pub key: usize,
    pub sink: usize,
    pub order: EventOrder,
}

/// The state of an event.
#[derive(Debug, Default)]
struct EventStory {
    /// The `type`.
    kind: String,
    /// The rounds with an attempt.
    begun: BTreeSet<u32>,
    /// The rounds in which the receiver took it.
    taken: BTreeSet<u32>,
    is_discarded: bool,
}

/// An attempt under way.
struct RunningAttempt {
    number: u64,
    name: EventName,
    relay: u64,
    process: Arc<Process>,
}

/// The attempts of a process to run an operation.
#[derive(Default)]
struct ClaimsOfProcess {
    fences: BTreeSet<u64>,
    /// The upstream answered with a release status.
    is_declined: bool,
}

/// The state of all events.
#[derive(Default)]
pub struct EventBook {
    events: BTreeMap<EventName, EventStory>,
    /// The whole events, by id.
    contents: BTreeMap<String, Bytes>,
    running: Vec<RunningAttempt>,
    /// The relays, by their fences.
    relays: BTreeMap<RelayFence, u64>,
    /// The operations with an event that they are uncertain.
    announced: BTreeSet<usize>,
    /// The claims of operations, by gateway and life.
    claims: BTreeMap<(usize, usize, usize), ClaimsOfProcess>,
}

impl EventBook {
    fn named(&self, key: usize, sink: usize, version: u64, kind: &str) -> Option<EventName> {
        let is_it = |(name, story): &(&EventName, &EventStory)| {
            (name.key, name.sink, name.order.version) == (key, sink, version) && story.kind == kind
        };
        self.events.iter().find(is_it).map(|(name, _)| *name)
    }
}

/// Changes of operations.
impl World {
    /// A process sends a claim with this fence.
    pub fn claims_with(&self, key: usize, process: &Process, fence: Fence) {
        let of = (key, process.gateway, process.life);
        self.book().events.claims.entry(of).or_default().fences.insert(fence.0);
    }

    /// A process gets a release status for its request.
    pub fn was_declined(&self, key: usize, process: &Process) {
        let of = (key, process.gateway, process.life);
        self.book().events.claims.entry(of).or_default().is_declined = true;
    }

    /// The store has carried out a change: its events must exist from now on. `outbox` has the
    /// events that the gate passed with it.
    pub fn commits(
        &self,
        slot: &Slot,
        before: Option<&Held>,
        next: &Record,
        outbox: &[OutboxEvent],
    ) {
        let Some(publish) = &self.plan.policy.publish else { return };
        let Some(key) = self.key_of(slot) else { return };
        if before.is_some_and(|before| before.record.is_same_write(next)) {
            return;
        }
        let Some((state, status)) = self.announces(key, before, next, !outbox.is_empty()) else {
            return;
        };
        let matches = |rule: &&onceward::engine::PublishRule| {
            let has_status = rule.statuses.is_empty()
                || status
                    .is_some_and(|code| rule.statuses.iter().any(|class| class.contains(code)));
            rule.on.contains(&state) && (state != AnnouncedState::Completed || has_status)
        };
        let (opened_unix_ms, version) = (next.opened_unix_ms, next.version.0);
        for (number, rule) in (0..).zip(publish.rules.iter().filter(matches)) {
            let order = EventOrder { opened_unix_ms, version, number };
            let kind = rule.kind.clone();
            let kind = kind.unwrap_or_else(|| format!("onceward.operation.{}", state.name()));
            for sink in &rule.to {
                let name = EventName { key, sink: place_of(sink), order };
                let story = EventStory { kind: kind.clone(), ..EventStory::default() };
                self.book().events.events.insert(name, story);
                self.note_event("is committed", name, 0, 0);
            }
        }
        let mut sinks: Vec<_> = outbox.iter().map(|event| event.sink.clone()).collect();
        sinks.dedup();
        for sink in sinks {
            self.wake_relays(&OutboxWake { partition: 0, sink });
        }
    }

    /// Returns what a change must announce.
    fn announces(
        &self,
        key: usize,
        before: Option<&Held>,
        next: &Record,
        has_events: bool,
    ) -> Option<(AnnouncedState, Option<u16>)> {
        let before = before.map(|before| &before.record.state);
        let was_uncertain = matches!(before, Some(State::Uncertain { .. }));
        let mut book = self.book();
        let book = &mut book.events;
        match &next.state {
            State::InFlight { .. } => {
                if !was_uncertain {
                    book.announced.remove(&key);
                }
                None
            }
            State::Completed { reply, .. } => {
                Some((AnnouncedState::Completed, Some(reply.status.as_u16())))
            }
            State::Uncertain { .. } => {
                book.announced.insert(key).then_some((AnnouncedState::Uncertain, None))
            }
            State::Released => {
                let claimed = |((of, ..), claims): &(&(usize, usize, usize), &ClaimsOfProcess)| {
                    *of == key && claims.fences.contains(&next.fence.0)
                };
                let is_declined = match book.claims.iter().find(claimed) {
                    // A given-up claim makes no event.
                    Some((_, claims)) if claims.fences.len() == 1 => claims.is_declined,
                    // It is not clear which of the claims was answered.
                    _ => has_events,
                };
                (was_uncertain || is_declined).then_some((AnnouncedState::Released, None))
            }
            // No saga and no resource is simulated.
            State::Expired
            | State::Saga { .. }
            | State::Barred
            | State::Lock(_)
            | State::Review { .. }
            | State::Versions { .. } => None,
        }
    }

    /// Wake-ups are lost, too.
    pub fn wake_relays(&self, wake: &OutboxWake) {
        let processes: Vec<_> =
            self.book().gateways.iter().map(|gateway| gateway.process.clone()).collect();
        for process in processes {
            if process.cut_off_until().is_none() && !self.dice.chance(self.plan.rates.store) {
                // Without a relay nobody is woken.
                let _ = process.wakes.send(wake.clone());
            }
        }
    }

    fn note_event(&self, what: &'static str, name: EventName, round: u32, relay: u64) {
        let (sink, version) = (SINKS[name.sink], name.order.version);
        let what = Occurrence::Delivery { what, sink, version, round, relay };
        self.note(None, Some(name.key), what);
    }
}

/// Commands of relays, as the store carries them out.
impl World {
    pub fn attends(
        &self,
        number: u64,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        self.book().events.relays.insert(relay, number);
        let relays = at_once(self.store.attend(relay, lease))?;
        Ok(if self.has(Flaw::EachRelayAlone) { vec![relay] } else { relays })
    }

    pub fn owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        at_once(self.store.partition_owners())
    }

    pub fn owns(
        &self,
        number: u64,
        sent: Instant,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        if self.has(Flaw::EachRelayAlone) {
            return Ok(true);
        }
        let before = self.owners()?[0];
        let owned = at_once(self.store.own_partition(0, fence, over))?;
        let gives = owned && before == over && over != Some(fence);
        let running = {
            let book = &self.book().events;
            let is_its_own = over.is_some_and(|over| book.relays.get(&over) == Some(&number));
            let mut running = book.running.iter().filter(|attempt| attempt.relay == number);
            running.next().filter(|_| gives && is_its_own).map(|attempt| attempt.name)
        };
        // A command that is carried out late may meet attempts that began since.
        if let Some(name) = running.filter(|_| sent.elapsed() < AT_ONCE) {
            let text = format!("relay {number} gave the partition away during {name:?}");
            self.violated(ONE_AT_A_TIME, Some(name.key), text);
        }
        Ok(owned)
    }

    pub fn due_events(&self, sink: &str, limit: usize) -> Result<DueEvents, StoreError> {
        let mut due = at_once(self.store.due_events(0, sink, limit))?;
        if self.has(Flaw::LatestFirst) {
            for event in &mut due.events {
                let waiting = at_once(self.store.waiting_of(sink, &event.key.slot))?;
                event.clone_from(waiting.last().unwrap());
            }
        }
        Ok(due)
    }

    pub fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        let (fence, round) = (self.fence(fence)?, self.round(event, round));
        at_once(self.store.postpone(fence, event, round, attempts, pause))
    }

    pub fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        let (fence, before) = (self.fence(fence)?, self.round_of(event));
        let round = self.round(event, round);
        let removed = at_once(self.store.remove(fence, event, round))?;
        self.may_have_left(event, before, "is removed", |story, round| {
            story.taken.contains(&round)
        });
        Ok(removed)
    }

    pub fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        let (fence, before) = (self.fence(fence)?, self.round_of(event));
        let round = self.round(event, round);
        let buried = if self.has(Flaw::BuriesNothing) {
            at_once(self.store.remove(fence, event, round))?
        } else {
            at_once(self.store.bury(fence, event, round, burial))?
        };
        let is_unsendable = burial.kind == DeadLetterKind::Gateway;
        self.may_have_left(event, before, "is buried", |story, round| {
            is_unsendable || story.begun.contains(&round)
        });
        Ok(buried)
    }

    pub fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError> {
        if self.has(Flaw::RequeueForgets) {
            return at_once(self.store.discard(id));
        }
        let letter = at_once(self.store.dead_letter(id))?;
        let requeued = at_once(self.store.requeue(id, round))?;
        if let Some(letter) = letter.filter(|_| requeued) {
            self.count("operator: requeues a dead letter");
            self.note_event("is requeued", self.name_of(&letter.key), round.to, 0);
            self.wake_relays(&OutboxWake { partition: 0, sink: letter.key.sink });
        }
        Ok(requeued)
    }

    pub fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        let letter = at_once(self.store.dead_letter(id))?;
        let discarded = at_once(self.store.discard(id))?;
        if let Some(letter) = letter.filter(|_| discarded) {
            self.count("operator: discards a dead letter");
            let name = self.name_of(&letter.key);
            self.note_event("is discarded", name, letter.round, 0);
            let story = &mut self.book().events.events;
            story.entry(name).or_default().is_discarded = true;
        }
        Ok(discarded)
    }

    /// Returns the fence under which the store carries a change out.
    fn fence(&self, fence: RelayFence) -> Result<RelayFence, StoreError> {
        let owner = self.owners()?[0];
        if self.has(Flaw::EachRelayAlone) {
            at_once(self.store.own_partition(0, fence, owner))?;
        }
        Ok(if self.has(Flaw::IgnoresFence) { owner.unwrap_or(fence) } else { fence })
    }

    /// Returns the round that the store carries a change of an event out in.
    fn round(&self, event: &EventKey, round: u32) -> u32 {
        let any = self.round_of(event).filter(|_| self.has(Flaw::IgnoresRound));
        any.unwrap_or(round)
    }

    /// Returns the round of an event that waits.
    fn round_of(&self, event: &EventKey) -> Option<u32> {
        let waiting = at_once(self.store.waiting_of(&event.sink, &event.slot)).unwrap();
        waiting.iter().find(|waiting| waiting.key == *event).map(|waiting| waiting.round)
    }

    /// Checks an event that waited in round `before`, if it waits no more.
    fn may_have_left(
        &self,
        event: &EventKey,
        before: Option<u32>,
        what: &'static str,
        was_sent: impl Fn(&EventStory, u32) -> bool,
    ) {
        let Some(round) = before.filter(|_| self.round_of(event).is_none()) else { return };
        let name = self.name_of(event);
        self.count(if what == "is buried" { "sink: buried" } else { "sink: delivered" });
        self.note_event(what, name, round, 0);
        let was_sent =
            self.book().events.events.get(&name).is_some_and(|story| was_sent(story, round));
        if !was_sent {
            let text = format!("{name:?} {what}, and was not sent in round {round}");
            self.violated(REALLY_SENT, Some(name.key), text);
        }
    }

    fn name_of(&self, event: &EventKey) -> EventName {
        let key = self.key_of(&event.slot).unwrap_or(usize::MAX);
        EventName { key, sink: place_of(&event.sink), order: event.order }
    }
}

/// Attempts at receivers.
impl World {
    /// An attempt begins. Returns its number and its event, if that has a change.
    pub fn attempt_begins(
        &self,
        relay: u64,
        process: &Arc<Process>,
        sink: usize,
        delivery: &Delivery,
    ) -> Option<(u64, EventName)> {
        let name = self.known_event(sink, &delivery.event)?;
        self.note_event("is attempted", name, delivery.round, relay);
        self.check_content(name, &delivery.event_id, &delivery.event);
        self.check_order(name);
        let owner = self.owners().ok().and_then(|owners| owners[0]);
        let number = self.number();
        let other = {
            let mut book = self.book();
            let book = &mut book.events;
            book.events.entry(name).or_default().begun.insert(delivery.round);
            let is_owner = owner.and_then(|owner| book.relays.get(&owner)) == Some(&relay);
            let mut others = book.running.iter().filter(|other| {
                (other.name.key, other.name.sink) == (name.key, name.sink)
                    && other.process.stand() != Stand::Dead
            });
            // A takeover does not wait for the attempts of a relay that lost its lease.
            let other = others.find(|other| other.relay == relay || !is_owner);
            let other = other.map(|other| (other.relay, other.name));
            book.running.push(RunningAttempt { number, name, relay, process: process.clone() });
            other
        };
        if let Some((other, during)) = other {
            let text = format!("relay {relay} began {name:?} during {during:?} of relay {other}");
            self.violated(ONE_AT_A_TIME, Some(name.key), text);
        }
        Some((number, name))
    }

    pub fn attempt_ends(&self, number: u64) {
        self.book().events.running.retain(|attempt| attempt.number != number);
    }

    /// The receiver takes an event.
    pub fn takes(&self, name: EventName, round: u32) {
        self.note_event("is taken", name, round, 0);
        self.book().events.events.entry(name).or_default().taken.insert(round);
    }

    /// Returns the committed event of these bytes.
    fn known_event(&self, sink: usize, event: &[u8]) -> Option<EventName> {
        let event: serde_json::Value = serde_json::from_slice(event).unwrap();
        let text = |name: &str| event[name].as_str().unwrap();
        let key = Slot::from_reference(text("subject")).ok().and_then(|slot| self.key_of(&slot));
        let version = text("sequence").parse().unwrap();
        let name = key.and_then(|key| self.book().events.named(key, sink, version, text("type")));
        if name.is_none() {
            self.violated(NO_EVENT_ALONE, key, format!("an event without its change: {event}"));
        }
        name
    }

    fn check_content(&self, name: EventName, id: &str, event: &Bytes) {
        let first = {
            let contents = &mut self.book().events.contents;
            contents.entry(id.to_owned()).or_insert_with(|| event.clone()).clone()
        };
        if first != *event {
            let text = format!("{id} was {first:?} before, and is {event:?}");
            self.violated(ONE_CONTENT, Some(name.key), text);
        }
    }

    /// Checks that no earlier event of the operation waits. Requeued ones may. Operations of one
    /// key have no order among each other.
    fn check_order(&self, name: EventName) {
        let slot = &self.slots[name.key];
        let waiting = at_once(self.store.waiting_of(SINKS[name.sink], slot)).unwrap();
        let is_earlier = |order: &EventOrder| {
            order.opened_unix_ms == name.order.opened_unix_ms && *order < name.order
        };
        let earlier =
            waiting.iter().find(|waiting| waiting.round == 0 && is_earlier(&waiting.key.order));
        if let Some(earlier) = earlier {
            let text = format!("{name:?} was attempted before {:?}", earlier.key.order);
            self.violated(IN_ORDER, Some(name.key), text);
        }
    }

    /// Checks that every event has reached its sink, is a dead letter, or was discarded.
    pub fn check_events(&self) {
        let filter = DeadLetterFilter::default();
        let letters = at_once(self.store.dead_letters(&filter, None, 1000)).unwrap().letters;
        let dead: BTreeSet<_> = letters.iter().map(|letter| self.name_of(&letter.key)).collect();
        let lost: Vec<_> = {
            let events = &self.book().events.events;
            let is_lost = |(name, story): &(&EventName, &EventStory)| {
                story.taken.is_empty() && !story.is_discarded && !dead.contains(name)
            };
            events.iter().filter(is_lost).map(|(name, _)| *name).collect()
        };
        for name in lost {
            self.violated(REACHES_SINKS, Some(name.key), format!("{name:?} is lost"));
        }
        let backlog = at_once(self.store.backlog()).unwrap();
        let waiting: u64 = backlog.iter().map(|part| part.waiting).sum();
        let counted: u64 =
            backlog.iter().map(|part| part.dead_by_receiver + part.dead_by_gateway).sum();
        if (waiting, counted) != (0, letters.len() as u64) {
            let text = format!("{waiting} events wait, {counted} of {} are dead", letters.len());
            self.violated(COUNTS, None, text);
        }
    }
}

/// Returns the place of a sink in [`SINKS`].
fn place_of(sink: &str) -> usize {
    SINKS.iter().position(|name| *name == sink).unwrap()
}
