//! Shadow mode: what enforcing would have done, without refusing, waiting or keeping anything from anybody.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::identify::Identified;
use super::settle::Settled;
use super::{Gate, Guarded};
use crate::engine::{Admission, Asked, Claim, Outcome, Over, Refusal, admit, claim};
use crate::record::{Fence, Version};
use crate::store::Swap;

/// A watched request, from the end of its body to the head of its answer.
pub struct Observation(oneshot::Sender<Outcome>);

impl Gate {
    /// Begins to watch a request. Nothing here is awaited by the request itself.
    pub fn observe(self: &Arc<Self>, guarded: &Arc<Guarded>, identified: Identified) -> Option<Observation> {
        // Watching must not pile up behind a slow store, so it has a place only while there is one.
        let permit = self.watched.take()?;
        let (outcome, answered) = oneshot::channel();
        let (gate, watched) = (self.clone(), guarded.clone());
        self.tasks.spawn(async move {
            let _permit = permit;
            let policy = &watched.route.policy;
            let Ok(identified) = gate.where_it_lies(policy, identified).await else {
                return watched.meter.count_shadow("unknown");
            };
            let asked =
                Asked { caller: identified.caller, fingerprint: identified.fingerprint, fence: Fence(gate.entropy.next()) };
            let next = claim(&asked, Over::Nothing, Version(gate.entropy.next()), gate.clock.unix_ms(), policy);
            let own = Claim { fence: asked.fence, record: next.record };
            match gate.store.swap(&identified.slot, None, &own.record, next.lifetime).await {
                Ok(Swap::Stored) => {
                    watched.meter.count_shadow("execute");
                    let outcome = answered.await.unwrap_or(Outcome::InDoubt(crate::record::Cause::Broken));
                    let _: Settled = gate.settle(&identified.slot, &own, &outcome, policy).await;
                }
                Ok(Swap::Stale(held)) => watched.meter.count_shadow(would(&admit(held.as_ref(), &asked, policy))),
                Err(_) => watched.meter.count_shadow("unknown"),
            }
        });
        Some(Observation(outcome))
    }
}

impl Observation {
    /// Tells how the request ended. Bodies are not kept.
    pub fn ended(self, outcome: Outcome) {
        // The watcher is gone where it had nothing to settle.
        let _ = self.0.send(outcome);
    }
}

/// What enforcing would have done with a duplicate.
fn would(admission: &Admission) -> &'static str {
    match admission {
        Admission::Run | Admission::Claim(_) => "execute",
        Admission::Replay(_) => "replay",
        Admission::Wait => "wait",
        Admission::MarkUncertain | Admission::Refuse(Refusal::OutcomeUncertain { .. }) => "hold",
        Admission::Probe => "probe",
        Admission::Refuse(Refusal::KeyReused) => "refuse_key_reused",
        Admission::Refuse(Refusal::InFlight { .. }) => "refuse_in_flight",
        // A shadow record never keeps a body, so this is what enforcing would have replayed.
        Admission::Refuse(Refusal::ResponseNotStored { .. }) => "replay",
        Admission::Refuse(Refusal::Unreadable) => "refuse_unreadable",
        Admission::Refuse(Refusal::ResultExpired) => "refuse_result_expired",
        Admission::Refuse(Refusal::NotSent) => "execute",
    }
}
