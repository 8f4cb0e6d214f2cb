//! The sweeper: marks operations as uncertain if the lease of their attempt has ended. So the
//! operations of a dead gateway become uncertain a second or two after their leases end, even if no
//! duplicate arrives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::Policy;
use crate::gate::state::Gate;
use crate::key::Slot;
use crate::store::StoreError;

/// Time between two reads of the index of unsettled operations. It is jittered, so that many
/// gateways don't read the index at the same time.
const PERIOD: Duration = Duration::from_millis(800);

/// Maximum overdue operations of one read. After a full batch the sweeper reads again at once.
const BATCH: usize = 256;

/// Time between two trims of the event log. Entries may stay that much longer than configured.
const TRIM_PERIOD: Duration = Duration::from_secs(60);

/// Marks overdue operations as uncertain and trims the event log, for ever. `policies` has the
/// policies by route name; `fallback` is for routes that are no longer configured.
pub async fn sweep(gate: Arc<Gate>, policies: HashMap<String, Policy>, fallback: Policy) {
    let mut trimmed: Option<Instant> = None;
    loop {
        if let Some(keep) = gate.settings.log_keep
            && trimmed.is_none_or(|trimmed| trimmed.elapsed() >= TRIM_PERIOD)
        {
            gate.trim_log(keep).await;
            trimmed = Some(Instant::now());
        }
        match gate.sweep_once(&policies, &fallback).await {
            Ok(marked) if marked >= BATCH => {}
            Ok(_) => sleep(gate.entropy.jitter(PERIOD)).await,
            Err(error) => {
                tracing::debug!(%error, "index of unsettled operations not read");
                sleep(gate.entropy.jitter(PERIOD)).await;
            }
        }
    }
}

impl Gate {
    async fn sweep_once(
        &self,
        policies: &HashMap<String, Policy>,
        fallback: &Policy,
    ) -> Result<usize, StoreError> {
        let overdue = self.store.records.due(BATCH).await?;
        let mut failed = None;
        let mut marked = overdue.len();
        for slot in &overdue {
            if let Err(error) = self.sweep_slot(slot, policies, fallback).await {
                // One unreadable record must not keep the sweeper from marking the others.
                marked -= 1;
                failed = Some((slot, error));
            }
        }
        if let Some((slot, error)) = failed {
            let failures = overdue.len() - marked;
            tracing::warn!(
                failures,
                operation = %slot,
                %error,
                "overdue operations not marked uncertain"
            );
        }
        Ok(marked)
    }

    async fn sweep_slot(
        &self,
        slot: &Slot,
        policies: &HashMap<String, Policy>,
        fallback: &Policy,
    ) -> Result<(), StoreError> {
        let Some(held) = self.store.records.load(slot).await? else { return Ok(()) };
        let policy = policies.get(&*held.record.route).unwrap_or(fallback);
        self.mark_overdue(slot, policy).await.map(|_| ())
    }
}
