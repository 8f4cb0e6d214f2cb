//! Stories of the read model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::event::{Context, Event, EventKind};
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::record::Lifetime;
use crate::store::log::{EntryId, LogEntry, Position};

mod following;
mod observing;
mod repeating;
mod searching;

/// When the stories begin.
const T0: u64 = 1_800_000_000_000;

/// How long records are kept in the stories, and how long leases are.
const KEEP_MS: u64 = 600_000;
const LEASE_MS: u64 = 30_000;

fn slot(n: u64) -> Slot {
    let mut hash = [0; SLOT_BYTES];
    hash[..8].copy_from_slice(&n.to_be_bytes());
    Slot::from_hash(Space::Enforced, hash)
}

fn event(kind: EventKind, opened_ms: u64) -> Event {
    Event {
        kind,
        version: "1".into(),
        fence: "2".into(),
        route: "payments".into(),
        opened_ms,
        keep_ms: KEEP_MS,
        tombstone_ms: None,
        lease_ms: (kind == EventKind::Claimed).then_some(LEASE_MS),
        status: matches!(kind, EventKind::Completed | EventKind::Resolved | EventKind::Found)
            .then_some(201),
        response_bytes: None,
        cause: (kind == EventKind::Uncertain).then(|| "the connection broke".into()),
        phase: None,
        context: Context::default(),
    }
}

/// Applies the entries of a log to a model that is not emptied meanwhile.
fn applied(model: &ReadModel, entries: &TestLog) {
    model.apply(model.progress().unwrap().checkpoint.fence, &entries.0).unwrap();
}

/// A log with one partition that entries are appended to by hand.
#[derive(Default)]
struct TestLog(Vec<LogEntry>);

impl TestLog {
    fn append(&mut self, n: u64, at_ms: u64, event: &Event) {
        self.append_json(n, at_ms, &serde_json::to_value(event).unwrap());
    }

    fn append_json(&mut self, n: u64, at_ms: u64, event: &serde_json::Value) {
        let event = serde_json::to_vec(event).unwrap().into();
        let id = EntryId { ms: at_ms, seq: self.0.len() as u64 };
        self.0.push(LogEntry { partition: 0, id, slot: slot(n), event, link: None });
    }
}
