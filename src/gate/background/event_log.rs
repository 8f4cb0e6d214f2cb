//! The gate's side of the event log: whether it is enabled, and its trimming.

use std::time::Duration;

use crate::gate::state::Gate;

/// Maximum trim calls in one round. The rest of a long log waits for the next round, so that
/// trimming does not keep the store busy.
const TRIMS_PER_ROUND: usize = 100;

impl Gate {
    /// Returns whether the event log is enabled.
    pub fn event_log_enabled(&self) -> bool {
        self.settings.log_keep.is_some()
    }

    /// Removes entries that are older than `keep` from the log.
    pub(in crate::gate) async fn trim_log(&self, keep: Duration) {
        for _ in 0..TRIMS_PER_ROUND {
            match self.store.log.trim(keep).await {
                Ok(trimmed) => {
                    for reader in trimmed.forgotten {
                        tracing::warn!(
                            reader,
                            "event log reader forgotten: it was inactive for as long as entries are kept"
                        );
                    }
                    if trimmed.entries + trimmed.batches == 0 {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "event log not trimmed");
                    return;
                }
            }
        }
    }
}
