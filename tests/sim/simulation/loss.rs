//! A store that is replaced by one that lacks its last writes: a restart without its file, or a replica that lags behind.

use std::time::Duration;

use onceward::key::Slot;
use onceward::record::{Held, Lifetime, Record, State};
use onceward::store::Records;
use onceward::store::redis::RECENT_WRITE_TTL;

use super::link::at_once;
use super::world::World;

/// How much earlier than the hang a write may have been made whose gateway can write it again: less than gateways keep it.
const LOST_MS: u64 = RECENT_WRITE_TTL.as_millis() as u64 - 100;

impl World {
    /// The number of the store's history.
    pub fn history(&self) -> u64 {
        self.book().history_of_store
    }

    /// Remembers what a slot had before a change.
    pub fn remember(&self, slot: &Slot, before: Option<Held>) {
        if let Some(key) = self.key_of(slot) {
            self.book().operations[key].before = before;
        }
    }

    /// A gateway knows that this was written.
    pub fn is_acknowledged(&self, slot: &Slot, record: &Record) {
        if let Some(key) = self.key_of(slot) {
            self.book().operations[key].acknowledged.push(record.clone());
        }
    }

    /// The store, which hung since then, is replaced. Of each operation all is lost that a gateway can write again; some go
    /// back to the state before that.
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

    /// A slot has the state again that it had before its last change.
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

    /// Ends a record at once.
    fn forget(&self, slot: &Slot, record: &Record) {
        let lifetime = Lifetime { keep: Duration::ZERO, due: None, tombstone: None };
        let last = Record { version: record.version.next(), ..record.clone() };
        at_once(self.store.swap(slot, Some(record.version), &last, lifetime)).unwrap();
    }

    /// Whether a gateway can write it again: the claim of an attempt whose lease ran when the store began to hang, or a write of
    /// the last seconds before that. What no gateway knows to be written is gone with the store, and only a claim over
    /// nothing is of no use to anybody then.
    fn can_be_written_again(&self, key: usize, held: &Held, hung_since_ms: u64) -> bool {
        let known = self.book().operations[key]
            .acknowledged
            .iter()
            .any(|record| record.is_same_write(&held.record));
        match held.record.state {
            State::InFlight { doubt_since_ms } => {
                held.due_ms > hung_since_ms && (known || doubt_since_ms.is_none())
            }
            _ => known && held.written_ms + LOST_MS >= hung_since_ms,
        }
    }
}
