//! Writes on a resource: an attempt takes the lock of its resource, looks at the current version,
//! compares it with the condition of the write, and only then sends the write.

use std::sync::Arc;

use http::Request;
use tokio::time::Instant;

use super::{Attempt, Claimed, Forwarded};
use crate::engine::{LockRequest, OnStale, Outcome, WriteVerdict};
use crate::gate::answer::SettledAnswer;
use crate::gate::budget::Hold;
use crate::gate::payload::{AnswerBody, Payload};
use crate::gate::resource_lock::{HeldLock, LockTimes, busy};
use crate::gate::resource_write::{Look, ResourceWrite, look_request};
use crate::gate::state::{Gate, ProtectedRoute};
use crate::gate::upstream_service::UpstreamService;
use crate::key::Slot;
use crate::record::Reply;
use crate::refusal::{FailedCondition, Refusal};
use crate::telemetry::Answer;

/// The answer to a write that was not sent.
pub(in crate::gate) enum Unsent<RB> {
    /// The write is refused.
    Refused(Refusal),
    /// The upstream does not let the writer read the resource.
    Denied(Reply, Option<AnswerBody<RB>>),
}

/// A lock that a write holds, and what the write does with the current version.
struct Prepared {
    held: Option<HeldLock>,
    /// The tag of a version that the write overwrites, although the writer names another one.
    overwritten: Option<String>,
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
            Unsent::Denied(reply, body) => Ok(SettledAnswer {
                slot,
                answer: Answer::Released,
                reply: Arc::new(reply),
                first_fields: None,
                body,
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
        let (held, forwarded) = match self.prepare_write(&write).await {
            Ok(Prepared { held, overwritten }) => {
                self.claimed.event_context.overwrote = overwritten;
                let mut forwarded = self.forward_under_lease().await;
                if let Outcome::Answered(reply) = &mut forwarded.outcome
                    && held.is_some()
                {
                    write.tag_answer(Arc::make_mut(reply), &self.guarded.route.policy);
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
        if let Some(held) = held {
            // An attempt whose lease has ended may find a later attempt, which began from uncertain.
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
            return Ok(Prepared { held: None, overwritten: None });
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
        let look = look_request(&write.rule, policy, request);
        let preparing = async {
            let mut held = gate
                .take_lock(policy, &resource, &lock_request, times)
                .await
                .map_err(|refusal| (None, refusal.into()))?;
            let compared = gate.compare(guarded, write, look, service, (&mut *hold, claimed)).await;
            let overwritten = match compared {
                Ok(overwritten) => overwritten,
                Err(unsent) => return Err((Some(held), unsent)),
            };
            match gate.mark_sent(policy, &mut held, busy_for).await {
                Ok(()) => Ok(Prepared { held: Some(held), overwritten }),
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

impl Gate {
    /// Compares the condition of a write with the current version. Returns the tag of the version
    /// that the write overwrites, if the writer names another one.
    async fn compare<S, B>(
        &self,
        guarded: &ProtectedRoute,
        write: &ResourceWrite,
        look: Request<Payload<B>>,
        service: &mut S,
        (hold, claimed): (&mut Hold, &Claimed),
    ) -> Result<Option<String>, Unsent<S::ResponseBody>>
    where
        S: UpstreamService<B>,
    {
        let policy = &guarded.route.policy;
        let current = match self.look_at(guarded, &write.rule, look, service, hold).await {
            Look::Found(current, _) => current,
            Look::Denied(reply, body) => return Err(Unsent::Denied(reply, body)),
        };
        let failed = |current, why| Err(Refusal::PreconditionFailed { current, why }.into());
        match write.condition.verdict(&current) {
            WriteVerdict::Send => Ok(None),
            WriteVerdict::Missing => failed(None, FailedCondition::Missing),
            WriteVerdict::Exists(tag) => failed(tag, FailedCondition::Exists),
            WriteVerdict::Unreadable => Err(Refusal::ResourceUnreadable.into()),
            // The version may be the work of an earlier attempt of this very write.
            WriteVerdict::Stale(tag) if claimed.claim.uncertain_since_ms().is_some() => {
                failed(Some(tag), FailedCondition::Stale)
            }
            WriteVerdict::Stale(tag) => match write.rule.on_stale {
                OnStale::Reject => failed(Some(tag), FailedCondition::Stale),
                OnStale::Overwrite => {
                    let text = tag.to_field().and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
                    guarded.meter.count_overwrite();
                    tracing::info!(
                        route = %policy.route,
                        operation = %claimed.slot,
                        tag = text.as_deref().unwrap_or_default(),
                        "write overwrites a version that the writer does not name"
                    );
                    Ok(text)
                }
            },
        }
    }
}
