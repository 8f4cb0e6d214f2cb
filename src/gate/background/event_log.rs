//! The gate's side of the event log: writes a record and its event in one step, and trims the log.

use std::time::Duration;

use crate::engine::{Policy, Side, any_chosen, chosen};
use crate::event::{Context, Event};
use crate::gate::state::Gate;
use crate::key::{Document, Slot, Space};
use crate::record::{Lifetime, Record, ReplyBody, State, Version};
use crate::store::{EventSource, NO_EVENT, StoreError, Swap};

/// Maximum trim calls in one round. The rest of a long log waits for the next round, so that
/// trimming does not keep the store busy.
const TRIMS_PER_ROUND: usize = 100;

impl Gate {
    /// Writes a record and the event of this change, in one step. `event_context` returns the part
    /// of the event that is not in the record. A write may call `event_context` more than once.
    /// Records of shadow routes have no events.
    pub(in crate::gate) async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        policy: &Policy,
        event_context: impl Fn() -> Context + Send + Sync,
    ) -> Result<Swap, StoreError> {
        let event = || {
            let mut context = event_context();
            add_response_fields(&mut context, next, policy);
            Event::of(next, lifetime, context).encode()
        };
        let has_event = self.event_log_enabled() && slot.space == Space::Enforced;
        let event: EventSource<'_> = if has_event { &event } else { NO_EVENT };
        self.store.records.write(slot, expected, next, lifetime, event).await
    }

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

/// Adds the members of a result that the route has chosen for events. The result may come from the
/// upstream, a probe or an operator. The members are read from the stored reply, so redacted
/// members are not added.
fn add_response_fields(context: &mut Context, next: &Record, policy: &Policy) {
    let State::Completed { reply, .. } = &next.state else { return };
    let ReplyBody::Whole(body) = &reply.body else { return };
    if any_chosen(&policy.fields, Side::Response)
        && let Ok(document) = Document::parse(body)
    {
        context.fields.extend(chosen(&policy.fields, Side::Response, &document));
    }
}
