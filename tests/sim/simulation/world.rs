//! The state that all gateways share: time, chance, the store, the upstream's books, and the
//! history.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use onceward::clock::StoreClock;
use onceward::gate::{Gate, Intake, ProtectedRoute};
use onceward::key::{Caller, Fingerprint, Hashing, Slot};
use onceward::record::Reply;
use onceward::store::memory::Memory;
use tokio::time::Instant;

use super::checks::{Operation, Violation};
use super::dice::Dice;
use super::events::EventBook;
use super::flaw::Flaw;
use super::history::{Event, Occurrence};
use super::plan::Plan;
use super::process::Process;
use super::sinks::Deliveries;
use super::wire::Wire;

/// 2026, in ms: wall clocks and the store's clock begin about here.
const BEGIN_UNIX_MS: u64 = 1_780_000_000_000;

/// The askers: the first caller, another caller with the same request, and the first caller with
/// another request.
pub const ASKERS: [Asker; 3] = [
    Asker { name: "alice", caller: "alice", body: br#"{"amount": 1}"# },
    Asker { name: "mallory", caller: "mallory", body: br#"{"amount": 1}"# },
    Asker { name: "alice, other body", caller: "alice", body: br#"{"amount": 2}"# },
];

pub struct Asker {
    pub name: &'static str,
    pub caller: &'static str,
    pub body: &'static [u8],
}

/// A running gateway.
#[derive(Clone)]
pub struct Gateway {
    pub process: Arc<Process>,
    pub gate: Arc<Gate>,
    pub guarded: Arc<ProtectedRoute>,
    pub wire: Wire,
    /// Its relay, where there are sinks.
    pub deliveries: Option<Deliveries>,
}

pub struct World {
    pub plan: Plan,
    pub flaw: Option<Flaw>,
    pub dice: Dice,
    pub store: Arc<Memory>,
    pub slots: Vec<Slot>,
    /// The caller and fingerprint of each of [`ASKERS`], as records have them.
    pub marks: Vec<(Caller, Fingerprint)>,
    begin: Instant,
    clock: StoreClock,
    book: Mutex<Book>,
}

/// The mutable state.
#[derive(Default)]
pub struct Book {
    pub gateways: Vec<Gateway>,
    pub operations: Vec<Operation>,
    pub events: EventBook,
    pub history: Vec<Event>,
    pub tally: BTreeMap<&'static str, u64>,
    pub violations: Vec<Violation>,
    /// The end of the store's current stall, and the total time of all stalls.
    pub stalled_until: Option<Instant>,
    pub stalled_for: Duration,
    /// Faults are over.
    pub calm: bool,
    /// The time of the last event that is already scheduled: store commands, requests at the
    /// upstream.
    pub last: Option<Instant>,
    /// The number of clients that still send requests, and the time since which it is 0.
    pub clients: usize,
    pub quiet_since: Option<Instant>,
    numbers: u64,
    /// The number of the store's history of writes: it changes with each loss.
    pub history_of_store: u64,
}

/// A request to the gateway, without its body.
pub fn head(asker: usize, key: usize) -> Box<Parts> {
    let request = Request::post("/payments")
        .header("idempotency-key", format!("k{key}"))
        .header("authorization", ASKERS[asker].caller)
        .header("content-type", "application/json");
    let (parts, ()) = request.body(()).unwrap().into_parts();
    Box::new(parts)
}

impl World {
    pub fn new(seed: u64, flaw: Option<Flaw>) -> Arc<World> {
        let dice = Dice::new(seed);
        let plan = Plan::draw(&dice, flaw);
        let identified = |asker: usize, key| {
            let body = Bytes::from_static(ASKERS[asker].body);
            let (parts, policy) = (head(asker, key), &plan.policy);
            let intake = Intake::from_head(policy, &parts.headers, None).unwrap().unwrap();
            let identified = intake.with_body(policy, &Hashing::default(), &parts, &body.into());
            identified.unwrap().unwrap().operation
        };
        let slots = (0..plan.keys).map(|key| identified(0, key).slot).collect();
        let marks = (0..ASKERS.len())
            .map(|asker| identified(asker, 0))
            .map(|it| (it.caller, it.fingerprint))
            .collect();
        let begin = Instant::now();
        let drift = 1000 + plan.drift;
        let clock: StoreClock = Arc::new(move || {
            BEGIN_UNIX_MS + begin.elapsed().as_millis() as u64 * drift as u64 / 1000
        });
        let operations = (0..plan.keys).map(|_| Operation::default()).collect();
        let book = Mutex::new(Book { operations, clients: plan.clients, ..Book::default() });
        Arc::new(World {
            plan,
            flaw,
            dice,
            store: Arc::new(Memory::new(clock.clone())),
            slots,
            marks,
            begin,
            clock,
            book,
        })
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    /// The time of the store's clock.
    pub fn store_ms(&self) -> u64 {
        (self.clock)()
    }

    /// The time of a gateway's wall clock.
    pub fn wall_ms(&self, process: &Process) -> u64 {
        (BEGIN_UNIX_MS + self.now_ms()).saturating_add_signed(process.wall_off_ms())
    }

    /// The time of a gateway's monotonic clock, which continues while the process is stopped.
    pub fn boot_ms(&self, process: &Process) -> u64 {
        const BOOTED_MS: u64 = 1_000_000;
        let stopped = if self.flaw == Some(Flaw::ClockStops) {
            process.stopped_for()
        } else {
            Duration::ZERO
        };
        BOOTED_MS * (1 + process.gateway as u64) + self.now_ms() - stopped.as_millis() as u64
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Whether faults are over.
    pub fn is_calm(&self) -> bool {
        self.book().calm
    }

    /// Returns a unique number.
    pub fn number(&self) -> u64 {
        let mut book = self.book();
        book.numbers += 1;
        book.numbers
    }

    pub fn key_of(&self, slot: &Slot) -> Option<usize> {
        self.slots.iter().position(|one| one == slot)
    }

    /// Returns the position in [`ASKERS`] of a record's owner.
    pub fn asker_of(
        &self,
        caller: Option<Caller>,
        fingerprint: Option<Fingerprint>,
    ) -> Option<usize> {
        let wanted = (caller?, fingerprint?);
        self.marks.iter().position(|mark| *mark == wanted)
    }

    pub fn note(&self, gateway: Option<usize>, key: Option<usize>, what: Occurrence) {
        let at_ms = self.now_ms();
        self.book().history.push(Event { at_ms, gateway, key, what });
    }

    pub fn count(&self, what: &'static str) {
        *self.book().tally.entry(what).or_default() += 1;
    }

    /// Registers an event at this time, which happens even if its sender is gone.
    pub fn under_way(&self, until: Instant) {
        let mut book = self.book();
        book.last = book.last.max(Some(until));
    }

    pub fn violated(&self, invariant: &'static str, key: Option<usize>, text: String) {
        let at_ms = self.now_ms();
        self.book().violations.push(Violation { at_ms, invariant, key, text });
    }

    /// Returns the total time of the store's stalls.
    pub fn stalled_for(&self) -> Duration {
        self.book().stalled_for
    }

    /// May stop or kill a process at its current step.
    pub fn strike(&self, process: &Arc<Process>, key: Option<usize>) {
        if self.is_calm() {
            return;
        }
        let rates = self.plan.rates;
        if self.dice.chance(rates.die) {
            self.kill(process, key);
        } else if self.dice.chance(rates.stop) {
            self.stop(process, key);
        }
    }

    pub fn kill(&self, process: &Arc<Process>, key: Option<usize>) {
        process.die();
        self.note(Some(process.gateway), key, Occurrence::Trouble { what: "it dies", for_ms: 0 });
        self.count("gateway: dies");
    }

    /// May stop a process that has just got a claim, for so long that others have run the operation
    /// again when it resumes. The send rule must prevent a second execution.
    pub fn strike_claimant(&self, process: &Arc<Process>, key: Option<usize>) {
        if !self.is_calm() && self.dice.chance(self.plan.rates.stop * 3) {
            let policy = &self.plan.policy;
            let least = policy.lease + policy.uncertain_after;
            let span = self.dice.span(least.as_millis() as u64, least.as_millis() as u64 * 2);
            self.stop_for(process, key, span);
        }
    }

    pub fn stop(&self, process: &Arc<Process>, key: Option<usize>) {
        let policy = &self.plan.policy;
        let lease = policy.lease.as_millis() as u64;
        let span = match self.dice.below(3) {
            0 => self.dice.span(1, 500),
            1 => self.dice.span(lease / 3, lease * 3 / 2),
            _ => self.dice.span(lease, lease + policy.uncertain_after.as_millis() as u64 * 2),
        };
        self.stop_for(process, key, span);
    }

    fn stop_for(&self, process: &Arc<Process>, key: Option<usize>, span: Duration) {
        if process.stop(span) {
            let for_ms = span.as_millis() as u64;
            self.note(
                Some(process.gateway),
                key,
                Occurrence::Trouble { what: "it is stopped", for_ms },
            );
            self.count("gateway: is stopped");
        }
    }

    /// A result that an operator enters.
    pub fn reply(&self, status: u16, body: String) -> Arc<Reply> {
        let status = http::StatusCode::from_u16(status).unwrap();
        let body = onceward::record::ReplyBody::Whole(Bytes::from(body));
        Arc::new(Reply { status, headers: http::HeaderMap::new(), body, trailers: None })
    }
}
