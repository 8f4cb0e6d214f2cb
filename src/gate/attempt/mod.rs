//! The attempt: forwards a claimed request once, and renews the lease meanwhile. Then it settles
//! the outcome, and after that it answers the request.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::answer::{Fields, SettledAnswer};
use super::budget::Hold;
use super::close_delimited::{CloseDelimited, may_be_cut};
use super::payload::{AnswerBody, Payload};
use super::quota::QuotaUse;
use super::resource_write::ResourceWrite;
use super::response::ReceivedBody;
use super::saga_place::NewSaga;
use super::send_rule::SendRule;
use super::shared_permit::SharedPermit;
use super::state::{Gate, ProtectedRoute};
use super::upstream_service::UpstreamService;
use crate::engine::{
    Admission, Claim, ClaimRequest, DuplicateRefusal, Outcome, Policy, Verdict, admit,
    grpc_uncertainty, redacted,
};
use crate::event::Context;
use crate::forwarding::ForwardError;
use crate::key::Slot;
use crate::record::{Cause, Held, Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::telemetry::{Answer, Timer, Trail, Work};

pub(super) mod settle;
mod write;

use settle::{SettleResult, UnsettledOutcome};
use write::Unsent;

/// A confirmed claim, with everything that its attempt needs.
pub(super) struct Claimed {
    pub slot: Slot,
    pub asked: ClaimRequest,
    pub claim: Claim,
    pub rule: Arc<SendRule>,
    pub permit: SharedPermit,
    /// The operation's use of its tenant's quota, if quotas count the operation.
    pub quota_use: Option<QuotaUse>,
    /// The context of the event that is written together with the outcome.
    pub event_context: Context,
    /// The saga that begins with the claim; `None` for a request that is forwarded.
    pub saga: Option<NewSaga>,
}

/// The result of forwarding a request.
struct Forwarded<B> {
    outcome: Outcome,
    /// The body for the client, if the reply does not contain it.
    body: Option<AnswerBody<B>>,
    /// Whether nothing was sent because the send rule did not allow it.
    too_late: bool,
    /// The answer to a write on a resource that was not sent.
    unsent: Option<Box<Unsent<B>>>,
}

impl<B> Forwarded<B> {
    fn without_body(outcome: Outcome) -> Forwarded<B> {
        Forwarded { outcome, body: None, too_late: false, unsent: None }
    }

    fn failed(error: &ForwardError) -> Forwarded<B> {
        let outcome = match error {
            ForwardError::NeverSent(_) | ForwardError::TooLate => Outcome::NeverSent,
            ForwardError::Broken(_) => Outcome::InDoubt(Cause::Broken),
            ForwardError::Unreadable(fault, _) => Outcome::InDoubt(Cause::Unreadable(*fault)),
            ForwardError::TimedOut => Outcome::InDoubt(Cause::TimedOut),
        };
        let too_late = matches!(error, ForwardError::TooLate);
        Forwarded { too_late, ..Forwarded::without_body(outcome) }
    }
}

/// A claimed request until it is answered. It is boxed once, so that no step has to copy it.
pub(super) struct Attempt<S, B> {
    pub gate: Arc<Gate>,
    pub guarded: Arc<ProtectedRoute>,
    pub claimed: Claimed,
    pub request: Request<Payload<B>>,
    pub service: S,
    pub hold: Hold,
    /// The trail of the request, if the access log or traces record the request.
    pub trail: Option<Trail>,
    /// What a write on a resource brings along; `None` for other requests.
    pub write: Option<Box<ResourceWrite>>,
}

impl<S, B> Attempt<S, B> {
    /// Runs the attempt until its outcome is settled.
    pub async fn run(mut self: Box<Self>) -> Result<SettledAnswer<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
    {
        let in_flight = self.gate.meter.in_flight.clone();
        in_flight.inc();
        let answer = match self.write.take() {
            None => {
                let forwarded = self.forward_under_lease().await;
                self.conclude(forwarded).await
            }
            Some(write) => Box::pin(self.run_write(write)).await,
        };
        in_flight.dec();
        answer
    }

    /// Forwards the request and renews the lease meanwhile, for at most the response timeout.
    async fn forward_under_lease(&mut self) -> Forwarded<S::ResponseBody>
    where
        S: UpstreamService<B>,
    {
        let Attempt { gate, guarded, claimed, request, service, hold, trail, .. } = self;
        if !claimed.rule.allows() {
            return Forwarded { too_late: true, ..Forwarded::without_body(Outcome::NeverSent) };
        }
        let policy = &guarded.route.policy;
        request.extensions_mut().insert(claimed.rule.clone());
        claimed.permit.accompany(request);
        let timer = Timer::start();
        let mut step = Trail::step(trail.as_ref(), Work::Forward);
        let began = Instant::now();
        let until = began + guarded.response_timeout;
        let mut forwarding = pin!(gate.forward(policy, request, hold, service));
        let forwarded = tokio::select! {
            biased;
            forwarded = &mut forwarding => forwarded,
            () = gate.keep_lease(claimed, policy, until) => {
                given_up(&claimed.rule, Cause::TimedOut)
            }
            () = gate.abandoned.cancelled() => given_up(&claimed.rule, Cause::Stopped),
        };
        timer.stop(&guarded.meter.upstream);
        claimed.event_context.upstream_ms = upstream_ms(&forwarded.outcome, began.elapsed());
        match &forwarded.outcome {
            Outcome::Answered(reply) => step.answered(reply.status.as_u16()),
            Outcome::NeverSent => step.result("unreachable"),
            Outcome::InDoubt(_) => step.result("in_doubt"),
        }
        forwarded
    }

    /// Settles the outcome, then returns the answer.
    async fn conclude<RB>(
        mut self: Box<Self>,
        forwarded: Forwarded<RB>,
    ) -> Result<SettledAnswer<RB>, Refusal> {
        let Forwarded { mut outcome, body, too_late, unsent } = forwarded;
        let policy = &self.guarded.route.policy;
        let slot = self.claimed.slot;
        if !outcome.was_not_executed(policy) {
            self.claimed.quota_use.take().into_iter().for_each(QuotaUse::confirm);
        }
        let first_fields = take_unstored_fields(&mut outcome, policy);
        let step = Trail::step(self.trail.as_ref(), Work::Settle);
        let context = &self.claimed.event_context;
        let settled = self.gate.settle(&slot, &self.claimed.claim, &outcome, policy, context).await;
        drop(step);
        match settled {
            SettleResult::Written => {}
            SettleResult::Stale => return Box::pin(self.answer_as_duplicate()).await,
            SettleResult::Unconfirmed => return Err(self.settle_on(outcome)),
        }
        if self.claimed.claim.restores_uncertainty(&outcome, policy) {
            tracing::info!(
                route = %policy.route,
                operation = %slot,
                "retry of an uncertain operation did nothing: the operation is uncertain again"
            );
            return Err(uncertain(slot, None, policy));
        }
        if let Some(unsent) = unsent {
            return unsent.answer(slot, self.hold);
        }
        match outcome {
            Outcome::Answered(reply) => self.answer(reply, first_fields, body),
            Outcome::NeverSent if too_late => Err(Refusal::NotSent { slot }),
            Outcome::NeverSent => Err(Refusal::UpstreamUnreachable { slot: Some(slot) }),
            Outcome::InDoubt(cause) => {
                tracing::warn!(
                    route = %policy.route,
                    operation = %slot,
                    cause = cause.describe(),
                    "outcome uncertain"
                );
                let status = if cause == Cause::TimedOut { 504 } else { 502 };
                Err(uncertain(slot, Some(status), policy))
            }
        }
    }

    /// Returns the upstream's answer after the outcome was settled.
    fn answer<RB>(
        self,
        reply: Arc<Reply>,
        first_fields: Option<Box<Fields>>,
        body: Option<AnswerBody<RB>>,
    ) -> Result<SettledAnswer<RB>, Refusal> {
        let policy = &self.guarded.route.policy;
        let slot = self.claimed.slot;
        let answer = match policy.statuses.verdict(reply.status, &reply.headers) {
            Verdict::Uncertain => {
                tracing::warn!(
                    route = %policy.route,
                    operation = %slot,
                    status = reply.status.as_u16(),
                    "outcome uncertain: upstream answered with an uncertain status"
                );
                // A refusal must not have a status that means success.
                let status = if reply.status.as_u16() < 400 { 502 } else { reply.status.as_u16() };
                return Err(uncertain(slot, Some(status), policy));
            }
            Verdict::Store => Answer::Executed,
            Verdict::Release => Answer::Released,
        };
        // A streamed body uses the upstream's connection until the end of the body.
        let permit = self.claimed.permit;
        let body = body.map(|body| if body.streams() { body.keeping(permit) } else { body });
        Ok(SettledAnswer { slot, answer, reply, first_fields, body, hold: self.hold })
    }

    /// Continues to settle in the background, because the store has not confirmed the outcome in
    /// time. Returns the refusal for the client.
    fn settle_on(self, outcome: Outcome) -> Refusal {
        let Attempt { gate, guarded, claimed, hold, .. } = self;
        let Claimed { slot, claim, permit, event_context, .. } = claimed;
        let refusal = uncertain(slot, Some(502), &guarded.route.policy);
        let known = Some(claim.record.clone());
        let unsettled = UnsettledOutcome { slot, claim, known, outcome, event_context };
        gate.settle_in_background(unsettled, guarded, (permit, hold));
        refusal
    }

    /// Answers the client of a stale attempt like a duplicate, from the operation's record, and
    /// never with the attempt's own answer.
    ///
    /// This attempt has sent its request. So a refusal that claims otherwise is replaced by
    /// `outcome-uncertain`: a client would send the request again under another key, and a
    /// [call](crate::gate::call) would end as not sent.
    async fn answer_as_duplicate<RB>(self: Box<Self>) -> Result<SettledAnswer<RB>, Refusal> {
        let Attempt { gate, guarded, claimed, hold, .. } = *self;
        let (policy, slot) = (&guarded.route.policy, claimed.slot);
        let current: Option<Held> = gate.store.records.load(&slot).await.ok().flatten();
        gate.meter.lost_leases.inc();
        tracing::warn!(
            route = %policy.route,
            operation = %slot,
            "attempt finished after the operation was already settled"
        );
        match admit(current.as_ref(), &claimed.asked, policy) {
            Admission::Replay(reply) => Ok(SettledAnswer::replayed(slot, reply, hold)),
            Admission::Refuse(
                refusal @ (DuplicateRefusal::InFlight { .. }
                | DuplicateRefusal::ResponseNotStored { .. }
                | DuplicateRefusal::ResultExpired),
            ) => Err(Refusal::of_refusal(refusal, slot)),
            Admission::Refuse(
                DuplicateRefusal::OutcomeUncertain { .. }
                | DuplicateRefusal::KeyReused
                | DuplicateRefusal::Unreadable
                | DuplicateRefusal::NotSent
                | DuplicateRefusal::SagaStuck
                | DuplicateRefusal::Barred,
            )
            | Admission::Run
            | Admission::Claim(_)
            | Admission::Probe
            | Admission::Wait
            | Admission::MarkUncertain => Err(uncertain(slot, Some(502), policy)),
        }
    }
}

impl Gate {
    async fn forward<S, B>(
        &self,
        policy: &Policy,
        request: &mut Request<Payload<B>>,
        hold: &mut Hold,
        service: &mut S,
    ) -> Forwarded<S::ResponseBody>
    where
        S: UpstreamService<B>,
    {
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            // The request is moved out of the attempt, because an attempt sends its request once.
            service.call(std::mem::take(request)).await
        };
        let response = match sent.await {
            Ok(response) => response,
            Err(error) => {
                let error = ForwardError::of(error.into());
                tracing::info!(route = %policy.route, %error, "forwarding failed");
                return Forwarded::failed(&error);
            }
        };
        let (mut head, body) = response.into_parts();
        let close_delimited = head.extensions.get::<CloseDelimited>().is_some();
        self.prepare_fields(&mut head.headers);
        let mut reply = Reply {
            status: head.status,
            headers: head.headers,
            body: ReplyBody::NotStored,
            trailers: None,
        };
        if policy.statuses.verdict(reply.status, &reply.headers) == Verdict::Uncertain {
            return Forwarded::without_body(Outcome::Answered(Arc::new(reply)));
        }
        match self.read_body(&reply, body, hold).await {
            ReceivedBody::Whole(bytes, trailers) => {
                reply.trailers = trailers;
                self.whole_answer(policy, reply, bytes, close_delimited)
            }
            ReceivedBody::Streams(body) => {
                let outcome = Outcome::Answered(Arc::new(reply));
                Forwarded { body: Some(body), ..Forwarded::without_body(outcome) }
            }
            ReceivedBody::Broken => Forwarded::without_body(Outcome::InDoubt(Cause::Broken)),
        }
    }

    /// Returns the outcome of an answer that was read with its whole body.
    fn whole_answer<RB>(
        &self,
        policy: &Policy,
        mut reply: Reply,
        bytes: Bytes,
        close_delimited: bool,
    ) -> Forwarded<RB> {
        let is_stored = policy.statuses.verdict(reply.status, &reply.headers) == Verdict::Store;
        if is_stored && close_delimited && may_be_cut(&reply.headers, &bytes) {
            tracing::info!(
                route = %policy.route,
                "answer cut off: a close-delimited body is not a whole JSON text"
            );
            return Forwarded::without_body(Outcome::InDoubt(Cause::Broken));
        }
        reply.body = ReplyBody::Whole(bytes.clone());
        // The gRPC status takes precedence over the HTTP status, even if the HTTP status means that
        // nothing was done.
        if let Some(cause) = grpc_uncertainty(&reply) {
            return Forwarded::without_body(Outcome::InDoubt(cause));
        }
        // Values are redacted only in an answer that is stored.
        if is_stored {
            reply = redacted(reply, &policy.redact);
            // Without the trailers a replay would differ from the first answer, so the body is not
            // stored.
            if reply.trailers.is_some() && !self.settings.trailers {
                reply.body = ReplyBody::NotStored;
            }
        }
        let relayed = (reply.body == ReplyBody::NotStored)
            .then(|| AnswerBody::whole(bytes).with_trailers(reply.trailers.take()));
        let outcome = Outcome::Answered(Arc::new(reply));
        Forwarded { body: relayed, ..Forwarded::without_body(outcome) }
    }

    /// Renews the lease until `until`. A lost lease is not renewed. The attempt still reads the
    /// answer, and its fence decides whether it may settle.
    async fn keep_lease(&self, claimed: &Claimed, policy: &Policy, until: Instant) {
        let Claimed { slot, claim, rule, .. } = claimed;
        let mut pause = policy.lease / 3;
        let mut lost = false;
        loop {
            let renewal = Instant::now() + pause;
            if lost || renewal >= until {
                return sleep_until(until).await;
            }
            sleep_until(renewal).await;
            let from_ms = self.clock.boot_ms();
            let renewal = self.store.records.renew(
                slot,
                claim.fence,
                policy.lease,
                policy.unsettled_retention,
            );
            match timeout_at(until, renewal).await {
                Ok(Ok(true)) => {
                    rule.renewed(from_ms);
                    pause = policy.lease / 3;
                }
                Ok(Ok(false)) => {
                    tracing::warn!(
                        route = %policy.route,
                        operation = %slot,
                        "lease lost while the upstream works"
                    );
                    lost = true;
                }
                Ok(Err(error)) => {
                    self.meter.store_errors.inc();
                    tracing::warn!(
                        route = %policy.route,
                        operation = %slot,
                        %error,
                        "lease not renewed"
                    );
                    pause = policy.lease / 10;
                }
                Err(_) => return,
            }
        }
    }
}

/// Gives an attempt up. If no connection has the request yet, the request is never sent.
fn given_up<RB>(rule: &SendRule, cause: Cause) -> Forwarded<RB> {
    let outcome = if rule.revoke() { Outcome::NeverSent } else { Outcome::InDoubt(cause) };
    Forwarded::without_body(outcome)
}

/// Returns how long the upstream took, in ms; `None` if the request was not sent.
fn upstream_ms(outcome: &Outcome, took: Duration) -> Option<u64> {
    let sent = !matches!(outcome, Outcome::NeverSent);
    sent.then(|| u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// Removes from an outcome the fields that are never stored. If there are such fields, returns all
/// fields as the upstream sent them, for the first client.
fn take_unstored_fields(outcome: &mut Outcome, policy: &Policy) -> Option<Box<Fields>> {
    let Outcome::Answered(reply) = outcome else { return None };
    let has = |name| {
        reply.headers.contains_key(name)
            || reply.trailers.as_ref().is_some_and(|fields| fields.contains_key(name))
    };
    if !policy.unstored_fields().any(has) {
        return None;
    }
    let reply = Arc::make_mut(reply);
    let all = Box::new((reply.headers.clone(), reply.trailers.clone()));
    for name in policy.unstored_fields() {
        reply.headers.remove(name);
        reply.trailers.iter_mut().for_each(|trailers| _ = trailers.remove(name));
    }
    reply.trailers = reply.trailers.take().filter(|trailers| !trailers.is_empty());
    Some(all)
}

fn uncertain(slot: Slot, status: Option<u16>, policy: &Policy) -> Refusal {
    Refusal::OutcomeUncertain {
        slot: Some(slot),
        status,
        retry_after: policy.uncertain_retry_after(),
    }
}
