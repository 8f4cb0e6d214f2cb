//! Telling of changes: what the gate appends to the event log, and how the log is kept short.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::engine::{Policy, Side, any_chosen, chosen};
use crate::event::{Context, Event};
use crate::gate::Gate;
use crate::key::{Document, Slot, Space};
use crate::record::{Lifetime, Record, ReplyBody, State, Version};
use crate::store::{EventSource, NO_EVENT, StoreError, Swap};

/// Calls to trim in one round: what is left over waits for the next, so that a long log is not taken away at one stroke.
const TRIMS_PER_ROUND: usize = 100;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

impl Gate {
    /// Writes a record, and the event that tells of it; `told` is asked for what that says beside the record. Of what is only
    /// watched nothing is told.
    pub(in crate::gate) async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        (next, lifetime): (&Record, Lifetime),
        policy: &Policy,
        told: impl Fn() -> Context + Send + Sync,
    ) -> Result<Swap, StoreError> {
        let says = || {
            let mut context = told();
            tell_result(&mut context, next, policy);
            Event::of(next, lifetime, context).encode()
        };
        let says: EventSource<'_> = if self.event_log_enabled() && slot.space == Space::Enforced {
            &says
        } else {
            NO_EVENT
        };
        self.store.records.write(slot, expected, next, lifetime, says).await
    }

    /// Whether anything is told.
    pub fn event_log_enabled(&self) -> bool {
        self.settings.log_keep.is_some()
    }

    /// Takes away what the log has kept for long enough.
    pub(in crate::gate) async fn trim_log(&self, keep: Duration) {
        for _ in 0..TRIMS_PER_ROUND {
            match self.store.log.trim(keep).await {
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

/// Adds the chosen fields of a result, whoever found it. They are those of what is stored: what is redacted is not told.
fn tell_result(context: &mut Context, next: &Record, policy: &Policy) {
    let State::Completed { reply, .. } = &next.state else { return };
    let ReplyBody::Whole(body) = &reply.body else { return };
    if any_chosen(&policy.fields, Side::Response)
        && let Ok(document) = Document::parse(body)
    {
        context.fields.extend(chosen(&policy.fields, Side::Response, &document));
    }
}

/// Digits of a trace's id (Trace Context, section 3.2.2.3).
pub(in crate::gate) const TRACE_DIGITS: usize = 32;

/// The trace that a request belongs to: the layer sees to it that the field is there, and well-formed.
pub(in crate::gate) fn trace_digits(headers: &HeaderMap) -> Option<[u8; TRACE_DIGITS]> {
    let trace = headers.get(TRACEPARENT)?.as_bytes().get(3..3 + TRACE_DIGITS)?;
    trace.iter().all(u8::is_ascii_hexdigit).then(|| trace.try_into().ok())?
}

/// The same as a text.
pub(in crate::gate) fn trace_of(headers: &HeaderMap) -> Option<String> {
    trace_digits(headers).as_ref().map(trace_text)
}

/// Digits as a text.
pub(in crate::gate) fn trace_text(digits: &[u8; TRACE_DIGITS]) -> String {
    String::from_utf8(digits.to_vec()).unwrap_or_default()
}
