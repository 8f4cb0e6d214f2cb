//! A store that is replaced by one without its last writes: a restart without its file, or a
//! replica that lags behind.

use std::time::Duration;

use onceward::key::Slot;
use onceward::record::{Held, Lifetime, Record, State};
use onceward::store::Records;
use onceward::store::redis::RECENT_WRITE_TTL;

use super::link::at_once;
use super::world::World;

/// The time before the hang within which a gateway can repeat a write: less than gateways keep it.
const LOST_MS: u64 = RECENT_WRITE_TTL.as_millis() as u64 - 100;

impl World {
    /// The number of the store's history.
    pub fn history(&self) -> u64 {
        self.book().history_of_store
    }

    /// Records a slot's content before a change.
    pub fn remember(&self, slot: &Slot, before: Option<Held>) {
        if let Some(key) = self.key_of(slot) {
            self.book().operations[key].before = before;
        }
    }

    /// A gateway knows that this record is stored.
    pub fn is_acknowledged(&self, slot: &Slot, record: &Record) {
        if let Some(key) = self.key_of(slot) {
            self.book().operations[key].acknowledged.push(record.clone());
        }
    }

    /// Replaces the store, which hung since then. Each operation loses all writes that a gateway
    /// can repeat; some return to the state before those.
    pub fn lose(&self, hung_since_ms: u64) {
        self.book().history_of_store += 1;
        self.trouble(None, "the store goes on without its last writes", Duration::ZERO);
        for key in 0..self.plan.keys {
            let slot = self.slots[key];
            let Some(held) = at_once(self.store.load(&slot)).unwrap() else { continue };
            if !self.can_be_written_again(key, &held, hung_since_ms) {
                continue;
            }
            self.count("store: loses its last writes");
            let asks = self.book().operations[key].last_claim;
            let is_running = matches!(held.record.state, State::InFlight { .. });
            if is_running
                && asks.is_some_and(|(at_ms, fence)| {
                    at_ms >= hung_since_ms && fence != held.record.fence
                })
            {
                self.count("store: loses a running claim while duplicates ask");
            }
            self.forget(&slot, &held.record);
            let before = self.book().operations[key].before.take();
            if let Some(before) = before.filter(|_| self.dice.chance(400)) {
                self.go_back(&slot, &before, held.now_ms);
            }
        }
    }

    /// Restores a slot's state before its last change.
    fn go_back(&self, slot: &Slot, before: &Held, now_ms: u64) {
        let policy = &self.plan.policy;
        let keep = match before.record.state {
            State::Released => policy.marker_retention(),
            _ => policy.unsettled_retention,
        };
        let left = |ms: u64| Duration::from_millis(ms.saturating_sub(now_ms).max(1));
        let due = (before.due_ms != 0).then(|| left(before.due_ms));
        let keep = left(before.written_ms + keep.as_millis() as u64);
        at_once(self.store.swap(
            slot,
            None,
            &before.record,
            Lifetime { keep, due, tombstone: None },
        ))
        .unwrap();
        self.count("store: goes back to an earlier state");
    }

    /// Expires a record at once.
    fn forget(&self, slot: &Slot, record: &Record) {
        let lifetime = Lifetime { keep: Duration::ZERO, due: None, tombstone: None };
        let last = Record { version: record.version.next(), ..record.clone() };
        at_once(self.store.swap(slot, Some(record.version), &last, lifetime)).unwrap();
    }

    /// Whether a gateway can repeat it: the claim of an attempt with a valid lease when the store
    /// began to hang, or a write of the last seconds before that. A write without an
    /// acknowledgement is lost with the store, which is harmless only for a claim over nothing.
    fn can_be_written_again(&self, key: usize, held: &Held, hung_since_ms: u64) -> bool {
        let known = self.book().operations[key]
            .acknowledged
            .iter()
            .any(|record| record.is_same_write(&held.record));
        match held.record.state {
            State::InFlight { uncertain_since_ms } => {
                held.due_ms > hung_since_ms && (known || uncertain_since_ms.is_none())
            }
            _ => known && held.written_ms + LOST_MS >= hung_since_ms,
        }
    }
}
