//! Telling of changes: what the gate appends to the event log, and how the log is kept short.

use std::time::Duration;

use super::Gate;
use crate::event::{Context, Event};
use crate::key::{Slot, Space};
use crate::record::{Lifetime, Record, Version};
use crate::store::{StoreError, Swap};

/// Calls to trim in one round: what is left over waits for the next, so that a long log is not taken away at one stroke.
const TRIMS_PER_ROUND: usize = 100;

impl Gate {
    /// Writes a record, and the event that tells of it. Of what is only watched nothing is told.
    pub(super) async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        context: Context,
    ) -> Result<Swap, StoreError> {
        let told = self.settings.log_keep.is_some() && slot.space == Space::Enforced;
        let event = if told { Event::of(next, lifetime, context).encode() } else { Vec::new() };
        self.store.write(slot, expected, next, lifetime, &event).await
    }

    /// Takes away what the log has kept for long enough.
    pub(super) async fn trim_log(&self, keep: Duration) {
        for _ in 0..TRIMS_PER_ROUND {
            match self.store.log().trim(keep).await {
                Ok(trimmed) => {
                    for reader in trimmed.forgotten {
                        tracing::warn!(
                            reader,
                            "a reader of the event log was not heard of for as long as entries are kept: it is waited for no more"
                        );
                    }
                    if trimmed.entries + trimmed.batches == 0 {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the event log could not be trimmed");
                    return;
                }
            }
        }
    }
}
