//! What a process knows of its calls, beside the notes in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::caller::OperationCaller;
use crate::store::outbox::EventKey;

/// Most rounds that are remembered as never sent. Beyond it they are forgotten: their events become
/// dead letters, and are not called again.
const NEVER_SENT_MAX: usize = 10_000;

/// The calls of a process, and its way to the gate.
#[derive(Default)]
pub(super) struct ProcessCalls {
    caller: RwLock<Option<Arc<dyn OperationCaller>>>,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    running: BTreeSet<EventKey>,
    /// The rounds, and the number of changes of the relay's partitions when they began: after
    /// another change, another relay may have begun the round meanwhile.
    never_sent: BTreeMap<EventKey, (u64, u32)>,
}

/// What the process knows of the calls of an event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KnownCall {
    /// Whether a call is active.
    pub is_running: bool,
    /// The round in which nothing was sent, as the process knows.
    pub never_sent: Option<u32>,
}

/// An active call. It counts as ended when this is dropped.
pub(super) struct RunningCall {
    calls: Arc<ProcessCalls>,
    event: EventKey,
    changes: u64,
}

impl ProcessCalls {
    /// Returns the way to the gate; `None` before there is a configuration.
    pub(super) fn caller(&self) -> Option<Arc<dyn OperationCaller>> {
        self.caller.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the way to the gate. Active calls end on the one that they began with.
    pub(super) fn set_caller(&self, caller: Arc<dyn OperationCaller>) {
        *self.caller.write().unwrap_or_else(PoisonError::into_inner) = Some(caller);
    }

    pub(super) fn of(&self, event: &EventKey, changes: u64) -> KnownCall {
        let calls = self.lock();
        let never_sent = calls.never_sent.get(event).filter(|(began, _)| *began == changes);
        KnownCall {
            is_running: calls.running.contains(event),
            never_sent: never_sent.map(|(_, round)| *round),
        }
    }

    /// Forgets that nothing was sent: the store has the note now, or a new call begins.
    pub(super) fn forget(&self, event: &EventKey) {
        self.lock().never_sent.remove(event);
    }

    /// Remembers that nothing was sent in a round, although its note may be that it began.
    pub(super) fn remember(&self, event: &EventKey, changes: u64, round: u32) {
        let mut calls = self.lock();
        // What is older than the present partitions counts for nothing.
        if calls.never_sent.len() >= NEVER_SENT_MAX {
            calls.never_sent.retain(|_, (began, _)| *began == changes);
        }
        if calls.never_sent.len() < NEVER_SENT_MAX {
            calls.never_sent.insert(event.clone(), (changes, round));
        }
    }

    /// Returns the number of active calls of a sink.
    pub(super) fn running_of(&self, sink: &str) -> usize {
        self.lock().running.iter().filter(|event| event.sink == sink).count()
    }

    /// Records that a call begins.
    pub(super) fn begin(self: &Arc<Self>, event: &EventKey, changes: u64) -> RunningCall {
        self.lock().running.insert(event.clone());
        RunningCall { calls: self.clone(), event: event.clone(), changes }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunningCall {
    /// Ends the call. `never_sent` is its round, if nothing was sent.
    pub(super) fn end(self, never_sent: Option<u32>) {
        if let Some(round) = never_sent {
            self.calls.remember(&self.event, self.changes, round);
        }
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.calls.lock().running.remove(&self.event);
    }
}
