//! The attempt: forward once, under a lease that is renewed; settle; only then answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until, timeout_at};
use tower_service::Service;

use super::budget::Hold;
use super::claim::Claimed;
use super::close_delimited::{CloseDelimited, may_be_cut};
use super::payload::{AnswerBody, BoxError, Payload};
use super::quota::Counted;
use super::send_rule::SendRule;
use super::trailers::{prepare_trailers, trailer_bytes};
use super::{Answered, Gate, IDEMPOTENT_REPLAYED, ProtectedRoute, replay};
use crate::engine::{
    Admission, Outcome, Policy, Verdict, admit, grpc_uncertainty, is_grpc, redacted,
};
use crate::gate::attempt::settle::Settled;
use crate::key::Slot;
use crate::record::{Cause, Held, Reply, ReplyBody};
use crate::refusal::{ForwardError, Refusal};
use crate::telemetry::{Answer, Timer, Trail, Work};

pub(super) mod settle;

/// How an attempt's outcome is told to its client.
struct Executed<B> {
    outcome: Outcome,
    /// The rest of a body that isn't kept.
    body: Option<AnswerBody<B>>,
    /// The send rule failed before the first byte.
    too_late: bool,
}

impl<B> Executed<B> {
    fn failed(outcome: Outcome) -> Executed<B> {
        Executed { outcome, body: None, too_late: false }
    }
}

/// A claimed request on its way to its end. It lives in one place on the heap: every step looks at it, none carries a copy.
pub(super) struct Attempt<S, B> {
    pub gate: Arc<Gate>,
    pub guarded: Arc<ProtectedRoute>,
    pub claimed: Claimed,
    pub request: Request<Payload<B>>,
    pub service: S,
    pub hold: Hold,
    /// Who wants to know of it.
    pub trail: Option<Trail>,
}

impl<S, B> Attempt<S, B> {
    /// Runs to the end.
    pub async fn run<RB>(mut self: Box<Self>) -> Result<Answered<RB>, Refusal>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let in_flight = self.gate.meter.in_flight.clone();
        in_flight.inc();
        let executed = self.execute().await;
        let answer = self.conclude(executed).await;
        in_flight.dec();
        answer
    }

    /// Forwards, keeping the lease, for at most the response timeout.
    async fn execute<RB>(&mut self) -> Executed<RB>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let Attempt { gate, guarded, claimed, request, service, hold, trail } = self;
        if !claimed.rule.allows() {
            return Executed { outcome: Outcome::NeverSent, body: None, too_late: true };
        }
        let policy = &guarded.route.policy;
        request.extensions_mut().insert(claimed.rule.clone());
        claimed.permit.accompany(request);
        let timer = Timer::start();
        let mut step = Trail::step(trail.as_ref(), Work::Forward);
        let began = Instant::now();
        let until = began + guarded.response_timeout;
        let mut work = pin!(gate.forward(policy, request, hold, service));
        let executed = tokio::select! {
            biased;
            executed = &mut work => executed,
            () = gate.keep_lease(claimed, policy, until) => given_up(&claimed.rule, Cause::TimedOut),
            () = gate.abandoned.cancelled() => given_up(&claimed.rule, Cause::Stopped),
        };
        timer.stop(&guarded.meter.upstream);
        claimed.told.upstream_ms = upstream_ms(&executed.outcome, began.elapsed());
        match &executed.outcome {
            Outcome::Answered(reply) => step.answered(reply.status.as_u16()),
            Outcome::NeverSent => step.result("unreachable"),
            Outcome::InDoubt(_) => step.result("in_doubt"),
        }
        executed
    }

    /// Settles, then says what the client gets.
    async fn conclude<RB>(
        mut self: Box<Self>,
        executed: Executed<RB>,
    ) -> Result<Answered<RB>, Refusal> {
        let Executed { mut outcome, body, too_late } = executed;
        let policy = &self.guarded.route.policy;
        let slot = self.claimed.slot;
        if !outcome.was_not_executed(policy) {
            self.claimed.counted.take().into_iter().for_each(Counted::for_good);
        }
        let whole = take_first_answer(&mut outcome, policy);
        let step = Trail::step(self.trail.as_ref(), Work::Settle);
        let settled = self
            .gate
            .settle(&slot, &self.claimed.claim, &outcome, policy, &self.claimed.told)
            .await;
        drop(step);
        match settled {
            Settled::Written => {}
            Settled::Stale => {
                let current = self.gate.store.records.load(&slot).await.ok().flatten();
                self.gate.meter.lost_leases.inc();
                tracing::warn!(route = %policy.route, operation = %slot, "an attempt came to its end after another had settled the operation");
                return answer_as_duplicate(
                    slot,
                    current.as_ref(),
                    &self.claimed.asked,
                    policy,
                    self.hold,
                );
            }
            Settled::Unconfirmed => {
                let Attempt {
                    gate,
                    guarded,
                    claimed: Claimed { claim, permit, told, .. },
                    hold,
                    ..
                } = *self;
                let current = Some(claim.record.clone());
                let problem = uncertain(slot, Some(502), &guarded.route.policy);
                gate.settle_in_background(
                    slot,
                    claim,
                    current,
                    (outcome, told),
                    guarded,
                    (permit, hold),
                );
                return Err(problem);
            }
        }
        if self.claimed.claim.restores_uncertainty(&outcome, policy) {
            tracing::info!(route = %policy.route, operation = %slot, "an attempt from uncertain did nothing: the operation is as uncertain as before");
            return Err(uncertain(slot, None, policy));
        }
        match outcome {
            Outcome::Answered(reply) => match policy.statuses.verdict(reply.status, &reply.headers)
            {
                Verdict::Uncertain => {
                    tracing::warn!(route = %policy.route, operation = %slot, status = reply.status.as_u16(), "the upstream's status leaves the outcome uncertain");
                    // A status that means success must not carry a refusal.
                    let status =
                        if reply.status.as_u16() < 400 { 502 } else { reply.status.as_u16() };
                    Err(uncertain(slot, Some(status), policy))
                }
                verdict => {
                    let answer =
                        if verdict == Verdict::Store { Answer::Executed } else { Answer::Released };
                    // The upstream's connection is in use until the body has ended.
                    let permit = self.claimed.permit;
                    let body =
                        body.map(|body| if body.streams() { body.keeping(permit) } else { body });
                    Ok(Answered {
                        response: respond(whole, Arc::unwrap_or_clone(reply), body, self.hold),
                        answer,
                    })
                }
            },
            Outcome::NeverSent if too_late => Err(Refusal::NotSent { slot }),
            Outcome::NeverSent => Err(Refusal::UpstreamUnreachable { slot: Some(slot) }),
            Outcome::InDoubt(cause) => {
                tracing::warn!(route = %policy.route, operation = %slot, cause = cause.describe(), "the outcome is uncertain");
                let status = if cause == Cause::TimedOut { 504 } else { 502 };
                Err(uncertain(slot, Some(status), policy))
            }
        }
    }
}

impl Gate {
    async fn forward<S, B, RB>(
        &self,
        policy: &Policy,
        request: &mut Request<Payload<B>>,
        hold: &mut Hold,
        service: &mut S,
    ) -> Executed<RB>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            // Taken: an attempt sends its request once.
            service.call(std::mem::take(request)).await
        };
        let response = match sent.await {
            Ok(response) => response,
            Err(error) => {
                let error = ForwardError::of(error.into());
                tracing::info!(route = %policy.route, %error, "forwarding failed");
                return match error {
                    ForwardError::NeverSent(_) => Executed::failed(Outcome::NeverSent),
                    ForwardError::TooLate => {
                        Executed { outcome: Outcome::NeverSent, body: None, too_late: true }
                    }
                    ForwardError::Broken(_) => Executed::failed(Outcome::InDoubt(Cause::Broken)),
                    ForwardError::Unreadable(fault, _) => {
                        Executed::failed(Outcome::InDoubt(Cause::Unreadable(fault)))
                    }
                    ForwardError::TimedOut => Executed::failed(Outcome::InDoubt(Cause::TimedOut)),
                };
            }
        };
        let (mut head, body) = response.into_parts();
        let close_delimited = head.extensions.get::<CloseDelimited>().is_some();
        self.prepare(&mut head.headers);
        let mut reply = Reply {
            status: head.status,
            headers: head.headers,
            body: ReplyBody::NotStored,
            trailers: None,
        };
        if policy.statuses.verdict(reply.status, &reply.headers) == Verdict::Uncertain {
            return Executed::failed(Outcome::Answered(Arc::new(reply)));
        }
        match self.read(&reply, body, hold).await {
            Read::Whole(bytes, trailers) => {
                let verdict = policy.statuses.verdict(reply.status, &reply.headers);
                let stored = verdict == Verdict::Store;
                if stored && close_delimited && may_be_cut(&reply.headers, &bytes) {
                    tracing::info!(route = %policy.route, "a close-delimited answer is no whole JSON text");
                    return Executed::failed(Outcome::InDoubt(Cause::Broken));
                }
                reply.body = ReplyBody::Whole(bytes.clone());
                reply.trailers = trailers;
                // Its own status says more than the HTTP status that it came with, also where that means that nothing was done.
                if verdict != Verdict::Uncertain
                    && let Some(cause) = grpc_uncertainty(&reply)
                {
                    return Executed::failed(Outcome::InDoubt(cause));
                }
                // What is only relayed stays as it is.
                if stored {
                    reply = redacted(reply, &policy.redact);
                    // A replay without them would be another answer.
                    if reply.trailers.is_some() && !self.settings.trailers {
                        reply.body = ReplyBody::NotStored;
                    }
                }
                let relayed = (reply.body == ReplyBody::NotStored)
                    .then(|| AnswerBody::whole(bytes).with_trailers(reply.trailers.take()));
                Executed {
                    outcome: Outcome::Answered(Arc::new(reply)),
                    body: relayed,
                    too_late: false,
                }
            }
            Read::Streams(body) => Executed {
                outcome: Outcome::Answered(Arc::new(reply)),
                body: Some(body),
                too_late: false,
            },
            Read::Broken => Executed::failed(Outcome::InDoubt(Cause::Broken)),
        }
    }

    /// What is relayed and stored alike: without a foreign replay mark, with a date.
    pub(super) fn prepare(&self, headers: &mut HeaderMap) {
        headers.remove(IDEMPOTENT_REPLAYED);
        if !headers.contains_key(DATE) {
            let now = std::time::UNIX_EPOCH + Duration::from_millis(self.clock.unix_ms());
            if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
                headers.insert(DATE, date);
            }
        }
    }

    /// Reads a response body that can be kept; leaves the others to be streamed.
    pub(super) async fn read<RB>(&self, reply: &Reply, mut body: RB, hold: &mut Hold) -> Read<RB>
    where
        RB: Body<Data = Bytes> + Unpin,
    {
        let limit = self.settings.response_body;
        let announced = body.size_hint().lower();
        if reply.status == StatusCode::SWITCHING_PROTOCOLS
            || is_event_stream(&reply.headers)
            || announced > limit as u64
        {
            return Read::Streams(AnswerBody::stream(body));
        }
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Read::Broken };
            let data = match frame.into_data() {
                Ok(data) => data,
                // Other answers mean the same without them, and records without them are read by every version.
                Err(frame) => {
                    if let (Ok(found), true) = (frame.into_trailers(), is_grpc(&reply.headers)) {
                        let Some(bytes) = trailer_bytes(&found) else { return Read::Broken };
                        hold.overdraw(bytes);
                        trailers = prepare_trailers(found);
                    }
                    continue;
                }
            };
            let length = first.as_ref().map_or(0, Bytes::len) + rest.len();
            let fits = length + data.len() <= limit;
            // Overdrawn rather than refused: an answer that isn't kept can't be given again, and new requests are
            // refused until there is room.
            if fits {
                hold.overdraw(data.len());
            }
            // Most bodies come in one piece, which is kept as it is.
            match &first {
                None if !data.is_empty() => first = Some(data),
                None => {}
                Some(_) => rest.extend_from_slice(&data),
            }
            if !fits {
                return Read::Streams(AnswerBody::continued(join(first, rest), body));
            }
        }
        Read::Whole(join(first, rest), trailers)
    }

    /// Renews the lease for as long as the answer may take; returns when that time is over. A lease that is lost is not
    /// renewed: the attempt reads on and completes by fence.
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
                    tracing::warn!(route = %policy.route, operation = %slot, "the lease was lost while the upstream works");
                    lost = true;
                }
                Ok(Err(error)) => {
                    self.meter.store_errors.inc();
                    tracing::warn!(route = %policy.route, operation = %slot, %error, "a lease was not renewed");
                    pause = policy.lease / 10;
                }
                Err(_) => return,
            }
        }
    }
}

/// An attempt that is waited for no longer: what was withheld until then is never sent.
fn given_up<RB>(rule: &SendRule, cause: Cause) -> Executed<RB> {
    Executed::failed(if rule.revoke() { Outcome::NeverSent } else { Outcome::InDoubt(cause) })
}

/// How long the upstream took, where it was asked at all.
fn upstream_ms(outcome: &Outcome, took: Duration) -> Option<u64> {
    let asked = !matches!(outcome, Outcome::NeverSent);
    asked.then(|| u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// The fields that only the first client gets, taken out of what is stored.
fn take_first_answer(outcome: &mut Outcome, policy: &Policy) -> Option<Fields> {
    let Outcome::Answered(reply) = outcome else { return None };
    let has = |name| {
        reply.headers.contains_key(name)
            || reply.trailers.as_ref().is_some_and(|fields| fields.contains_key(name))
    };
    if !policy.unstored_fields().any(has) {
        return None;
    }
    let reply = Arc::make_mut(reply);
    let whole = (reply.headers.clone(), reply.trailers.clone());
    for name in policy.unstored_fields() {
        reply.headers.remove(name);
        reply.trailers.iter_mut().for_each(|trailers| _ = trailers.remove(name));
    }
    reply.trailers = reply.trailers.take().filter(|trailers| !trailers.is_empty());
    Some(whole)
}

/// The fields before and behind a body.
type Fields = (HeaderMap, Option<HeaderMap>);

fn respond<RB>(
    whole: Option<Fields>,
    reply: Reply,
    body: Option<AnswerBody<RB>>,
    hold: Hold,
) -> Response<AnswerBody<RB>> {
    let (headers, trailers) = whole.unwrap_or((reply.headers, reply.trailers));
    let kept = match reply.body {
        ReplyBody::Whole(bytes) => AnswerBody::whole(bytes).with_trailers(trailers),
        ReplyBody::NotStored | ReplyBody::Sealed(_) => AnswerBody::whole(Bytes::new()),
    };
    let mut response = Response::new(body.unwrap_or(kept).holding(hold));
    *response.status_mut() = reply.status;
    *response.headers_mut() = headers;
    response
}

/// A stale attempt's client gets what any duplicate would get, never the attempt's own copy.
fn answer_as_duplicate<RB>(
    slot: Slot,
    current: Option<&Held>,
    asked: &crate::engine::Asked,
    policy: &Policy,
    hold: Hold,
) -> Result<Answered<RB>, Refusal> {
    match admit(current, asked, policy) {
        Admission::Replay(reply) => replay(slot, reply, hold),
        Admission::Refuse(refusal) => match Refusal::of_refusal(refusal, slot) {
            Refusal::OutcomeUncertain { .. } => Err(uncertain(slot, Some(502), policy)),
            problem => Err(problem),
        },
        _ => Err(uncertain(slot, Some(502), policy)),
    }
}

fn uncertain(slot: Slot, status: Option<u16>, policy: &Policy) -> Refusal {
    Refusal::OutcomeUncertain {
        slot: Some(slot),
        status,
        retry_after: policy.uncertain_retry_after(),
    }
}

pub(super) enum Read<B> {
    /// All of it, and the trailers of a gRPC answer.
    Whole(Bytes, Option<HeaderMap>),
    Streams(AnswerBody<B>),
    Broken,
}

fn join(first: Option<Bytes>, rest: BytesMut) -> Bytes {
    match first {
        None => Bytes::new(),
        Some(first) if rest.is_empty() => first,
        Some(first) => [first, rest.freeze()].concat().into(),
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream")
    })
}
