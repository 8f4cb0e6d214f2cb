//! Writes on a resource: an attempt takes the lock of its resource, looks at the current version,
//! compares it with the condition of the write, and only then sends the write.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use tokio::time::Instant;

use super::{Attempt, Forwarded};
use crate::engine::{LockRequest, OnStale, Outcome, WriteCondition, WriteVerdict};
use crate::gate::answer::SettledAnswer;
use crate::gate::budget::Hold;
use crate::gate::payload::Payload;
use crate::gate::resource_lock::{HeldLock, LockTimes, busy};
use crate::gate::resource_write::{Denied, Look, ResourceWrite, look_request};
use crate::gate::state::{Gate, ProtectedRoute};
use crate::gate::upstream_service::UpstreamService;
use crate::key::{MergeVerdict, Slot};
use crate::refusal::{FailedCondition, Refusal};
use crate::telemetry::Answer;

/// The field of an answer to a patch that was merged into another version than its writer names.
const MERGED: HeaderName = HeaderName::from_static("onceward-merged");

/// The answer to a write that was not sent.
pub(in crate::gate) enum Unsent<RB> {
    /// The write is refused.
    Refused(Refusal),
    /// The upstream does not let the writer read the resource.
    Denied(Box<Denied<RB>>),
}

/// A lock that a write holds, and what the write does with the current version.
struct Prepared {
    held: Option<HeldLock>,
    comparison: Comparison,
}

/// What a write that may be sent does with the current version.
enum Comparison {
    /// It changes a version that the writer names, or the writer names none.
    AsNamed,
    /// It overwrites the version with this tag, although the writer names another one.
    Overwrites(String),
    /// It is merged into a version that the writer does not name.
    Merges,
}

/// What a look at the current version needs, besides the upstream.
struct Compared<'w, B> {
    write: &'w ResourceWrite,
    resource: Slot,
    /// The request that looks.
    look: Request<Payload<B>>,
    /// The body, if it is a merge patch.
    patch: Option<Bytes>,
    was_uncertain: bool,
}

impl<RB> From<Refusal> for Unsent<RB> {
    fn from(refusal: Refusal) -> Unsent<RB> {
        Unsent::Refused(refusal)
    }
}

impl<RB> Unsent<RB> {
    /// Returns the answer, after the operation was released.
    pub fn answer(self, slot: Slot, hold: Hold) -> Result<SettledAnswer<RB>, Refusal> {
        match self {
            Unsent::Refused(refusal) => Err(refusal),
            Unsent::Denied(denied) => Ok(SettledAnswer {
                slot,
                answer: Answer::Released,
                reply: Arc::new(denied.reply),
                first_fields: None,
                body: denied.body,
                hold,
            }),
        }
    }
}

impl<S, B> Attempt<S, B> {
    /// Runs a write until its outcome is settled.
    pub(super) async fn run_write(
        mut self: Box<Self>,
        write: Box<ResourceWrite>,
    ) -> Result<SettledAnswer<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
    {
        let (gate, guarded) = (self.gate.clone(), self.guarded.clone());
        let policy = &guarded.route.policy;
        // The new version, if the client gets its tag.
        let mut tagged = None;
        let (held, forwarded) = match self.prepare_write(&write).await {
            Ok(Prepared { held, comparison }) => {
                let is_merged = matches!(comparison, Comparison::Merges);
                self.claimed.event_context.overwrote = guarded.note(comparison);
                let mut forwarded = self.forward_under_lease().await;
                if let Outcome::Answered(reply) = &mut forwarded.outcome
                    && held.is_some()
                {
                    let reply = Arc::make_mut(reply);
                    if is_merged {
                        reply.headers.insert(MERGED, HeaderValue::from_static("true"));
                    }
                    tagged = write.tag_answer(reply, policy);
                }
                (held, forwarded)
            }
            Err((held, unsent)) => {
                let mut forwarded = Forwarded::without_body(Outcome::NeverSent);
                forwarded.unsent = Some(Box::new(unsent));
                (held, forwarded)
            }
        };
        let answer = self.conclude(forwarded).await;
        if let (Some(resource), Some((tag, body))) = (&write.resource, tagged) {
            gate.keep_version(policy, &write.rule, resource, &tag, &body).await;
        }
        if let Some(held) = held {
            // After a later attempt has begun, this attempt's own write may still be executed.
            let is_open =
                matches!(answer, Err(Refusal::OutcomeUncertain { .. } | Refusal::InFlight { .. }));
            held.end(!is_open);
        }
        answer
    }

    /// Takes the lock and compares the current version. Renews the lease of the operation
    /// meanwhile.
    async fn prepare_write(
        &mut self,
        write: &ResourceWrite,
    ) -> Result<Prepared, (Option<HeldLock>, Unsent<S::ResponseBody>)>
    where
        S: UpstreamService<B>,
    {
        let Attempt { gate, guarded, claimed, request, service, hold, .. } = self;
        let policy = &guarded.route.policy;
        if write.lacks_condition() {
            return Err((None, Refusal::PreconditionRequired.into()));
        }
        let Some(resource) = write.resource else {
            return Ok(Prepared { held: None, comparison: Comparison::AsNamed });
        };
        let until = Instant::now() + write.rule.lock_timeout;
        // The write waits for the lock, looks, and is sent.
        let busy_for = write.rule.lock_timeout + 2 * guarded.response_timeout;
        let lock_request = LockRequest {
            operation: claimed.slot,
            fence: claimed.claim.fence,
            was_uncertain: claimed.claim.uncertain_since_ms().is_some(),
        };
        let times = LockTimes { until, busy: busy_for };
        let compared = Compared {
            write,
            resource,
            look: look_request(&write.rule, policy, request),
            patch: write.is_patch.then(|| request.body().whole_bytes()).flatten(),
            was_uncertain: lock_request.was_uncertain,
        };
        let preparing = async {
            let mut held = gate
                .take_lock(policy, &resource, &lock_request, times)
                .await
                .map_err(|refusal| (None, refusal.into()))?;
            let comparison = match gate.compare(guarded, compared, service, hold).await {
                Ok(comparison) => comparison,
                Err(unsent) => return Err((Some(held), unsent)),
            };
            match gate.mark_sent(policy, &mut held).await {
                Ok(()) => Ok(Prepared { held: Some(held), comparison }),
                Err(refusal) => Err((None, refusal.into())),
            }
        };
        let longest = Instant::now() + busy_for;
        tokio::select! {
            biased;
            prepared = preparing => prepared,
            () = gate.keep_lease(claimed, policy, longest) => Err((None, busy().into())),
            () = gate.abandoned.cancelled() => Err((None, Refusal::Overloaded.into())),
        }
    }
}

impl ProtectedRoute {
    /// Counts and logs what a write is about to do with a version that its writer does not name.
    /// Returns the tag of the version that it overwrites.
    fn note(&self, comparison: Comparison) -> Option<String> {
        match comparison {
            Comparison::AsNamed => None,
            Comparison::Merges => {
                self.meter.resources.count_merge();
                None
            }
            Comparison::Overwrites(tag) => {
                self.meter.resources.count_overwrite();
                tracing::info!(
                    route = %self.route.policy.route,
                    tag,
                    "write overwrites a version that the writer does not name"
                );
                Some(tag)
            }
        }
    }
}

impl Gate {
    /// Compares the condition of a write with the current version.
    async fn compare<S, B>(
        &self,
        guarded: &ProtectedRoute,
        compared: Compared<'_, B>,
        service: &mut S,
        hold: &mut Hold,
    ) -> Result<Comparison, Unsent<S::ResponseBody>>
    where
        S: UpstreamService<B>,
    {
        let Compared { write, resource, look, patch, was_uncertain } = compared;
        let policy = &guarded.route.policy;
        let (current, body) = match self.look_at(guarded, &write.rule, look, service, hold).await {
            Look::Found(current, body) => (current, body),
            Look::Denied(denied) => return Err(Unsent::Denied(denied)),
        };
        let failed = |current, why| Err(Refusal::PreconditionFailed { current, why }.into());
        let tag = match write.condition.verdict(&current) {
            WriteVerdict::Send => return Ok(Comparison::AsNamed),
            WriteVerdict::Missing => return failed(None, FailedCondition::Missing),
            WriteVerdict::Exists(tag) => return failed(tag, FailedCondition::Exists),
            WriteVerdict::Unreadable => return Err(Refusal::ResourceUnreadable.into()),
            WriteVerdict::Stale(tag) => tag,
        };
        match write.rule.on_stale {
            // The version may be the work of an earlier attempt of this very write.
            _ if was_uncertain => failed(Some(tag), FailedCondition::Stale),
            OnStale::Reject => failed(Some(tag), FailedCondition::Stale),
            OnStale::Overwrite => {
                let text = tag.to_field().and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
                Ok(Comparison::Overwrites(text.unwrap_or_default()))
            }
            OnStale::Merge => {
                let Some(body) = body else { return failed(Some(tag), FailedCondition::Stale) };
                // Read before the current version is kept, which may displace the oldest one.
                let verdict = match patch {
                    Some(patch) => {
                        self.merge_verdict(&resource, &write.condition, &patch, &body).await?
                    }
                    None => MergeVerdict::Unclear,
                };
                if verdict == MergeVerdict::Apply {
                    return Ok(Comparison::Merges);
                }
                // The client gets the current tag with the refusal, and may name it next.
                self.keep_version(policy, &write.rule, &resource, &tag, &body).await;
                match verdict {
                    MergeVerdict::Conflict(members) => {
                        Err(Refusal::MergeConflict { current: tag, members }.into())
                    }
                    MergeVerdict::Apply | MergeVerdict::Unclear => {
                        failed(Some(tag), FailedCondition::Stale)
                    }
                }
            }
        }
    }

    /// Compares a merge patch with the version that its writer names, and with the current one.
    async fn merge_verdict(
        &self,
        resource: &Slot,
        condition: &WriteCondition,
        patch: &[u8],
        current: &[u8],
    ) -> Result<MergeVerdict, Refusal> {
        let WriteCondition::Matches(tags) = condition else { return Ok(MergeVerdict::Unclear) };
        let kept = self.kept_version(resource, tags).await?;
        Ok(kept.map_or(MergeVerdict::Unclear, |kept| kept.merge(patch, current)))
    }
}
