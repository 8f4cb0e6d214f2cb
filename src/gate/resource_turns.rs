//! Turns of this process's writes on a resource.
//!
//! Writes of one process wait here for each other, in the order of their arrival, and not at the
//! store. Otherwise each change of a lock would wake all of them, and all but one would fail.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::key::Slot;
use crate::record::Version;

/// Resources that are kept although nobody waits for them, for their versions.
const IDLE_MAX: usize = 4096;

/// The turns of one resource. Contains the version of its lock, if nobody holds the lock.
type Turns = Arc<Mutex<Option<Version>>>;

/// The turns of all resources. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct ResourceTurns(Arc<StdMutex<HashMap<Slot, Turns>>>);

/// The turn of one write. The next write of this process has its turn when this is dropped.
pub(super) struct ResourceTurn(OwnedMutexGuard<Option<Version>>);

impl ResourceTurns {
    /// Waits for the turn of a write, for at most until `until`.
    pub async fn turn(&self, resource: &Slot, until: Instant) -> Option<ResourceTurn> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() >= IDLE_MAX && !turns.contains_key(resource) {
                turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            }
            turns.entry(*resource).or_default().clone()
        };
        timeout_at(until, turn.lock_owned()).await.ok().map(ResourceTurn)
    }
}

impl ResourceTurn {
    /// Takes the version of the lock that a write of this process has left, if nobody held the lock
    /// then. If another process has taken the lock since, it has another version.
    pub fn take_free_version(&mut self) -> Option<Version> {
        self.0.take()
    }

    /// Ends the turn. `free` is the version of the lock, if the write that held it is settled.
    pub fn end(mut self, free: Option<Version>) {
        *self.0 = free;
    }
}
