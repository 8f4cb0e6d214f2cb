//! The attempt: forward once, under a lease that is renewed; settle; only then answer.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::sleep;
use tower_service::Service;

use super::budget::Hold;
use super::claim::Claimed;
use super::payload::{AnswerBody, BoxError, Payload};
use super::problem::{ForwardError, Problem};
use super::settle::Settled;
use super::{Answered, Gate, Guarded, IDEMPOTENT_REPLAYED, SendRule, replay};
use crate::engine::{Admission, Outcome, Policy, Verdict, admit};
use crate::key::Slot;
use crate::record::{Cause, Fence, Held, Reply, ReplyBody};
use crate::telemetry::{Answer, Timer};

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

impl Gate {
    /// Runs a claimed request to its end.
    pub(super) async fn attempt<S, B, RB>(
        self: Arc<Self>,
        guarded: Arc<Guarded>,
        claimed: Claimed,
        parts: Parts,
        body: Bytes,
        mut hold: Hold,
        service: S,
    ) -> Result<Answered<RB>, Problem>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let policy = &guarded.route.policy;
        self.meter.in_flight.inc();
        let mut request = Request::from_parts(parts, Payload::whole(body, Some(claimed.rule.clone())));
        request.extensions_mut().insert(claimed.rule.clone());
        let executed = self.execute(&guarded, &claimed, request, &mut hold, service).await;
        let answer = self.conclude(policy, claimed, executed, hold).await;
        self.meter.in_flight.dec();
        answer
    }

    /// Forwards, keeping the lease, for at most the response timeout.
    async fn execute<S, B, RB>(
        &self,
        guarded: &Guarded,
        claimed: &Claimed,
        request: Request<Payload<B>>,
        hold: &mut Hold,
        service: S,
    ) -> Executed<RB>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        if !claimed.rule.allows() {
            return Executed { outcome: Outcome::NeverSent, body: None, too_late: true };
        }
        let policy = &guarded.route.policy;
        let timer = Timer::start();
        let mut work = pin!(self.forward(policy, request, hold, service));
        let executed = tokio::select! {
            biased;
            executed = &mut work => executed,
            never = self.keep_lease(&claimed.slot, claimed.claim.fence, policy, &claimed.rule) => match never {},
            () = sleep(guarded.response_timeout) => Executed::failed(Outcome::InDoubt(Cause::TimedOut)),
            () = self.abandoned.cancelled() => Executed::failed(Outcome::InDoubt(Cause::Stopped)),
        };
        timer.stop(&guarded.meter.upstream);
        executed
    }

    async fn forward<S, B, RB>(
        &self,
        policy: &Policy,
        request: Request<Payload<B>>,
        hold: &mut Hold,
        mut service: S,
    ) -> Executed<RB>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        };
        let response = match sent.await {
            Ok(response) => response,
            Err(error) => {
                let error = ForwardError::of(error.into());
                tracing::info!(route = %policy.route, %error, "forwarding failed");
                return match error {
                    ForwardError::NeverSent(_) => Executed::failed(Outcome::NeverSent),
                    ForwardError::TooLate => Executed { outcome: Outcome::NeverSent, body: None, too_late: true },
                    ForwardError::Broken(_) => Executed::failed(Outcome::InDoubt(Cause::Broken)),
                    ForwardError::TimedOut => Executed::failed(Outcome::InDoubt(Cause::TimedOut)),
                };
            }
        };
        let (mut head, body) = response.into_parts();
        self.prepare(&mut head.headers);
        let mut reply = Reply { status: head.status, headers: head.headers, body: ReplyBody::NotStored };
        if policy.statuses.verdict(reply.status, &reply.headers) == Verdict::Uncertain {
            return Executed::failed(Outcome::Answered(reply));
        }
        match self.read(&reply, body, hold).await {
            Read::Whole(bytes) => {
                reply.body = ReplyBody::Whole(bytes);
                Executed::failed(Outcome::Answered(reply))
            }
            Read::Streams(body) => Executed { outcome: Outcome::Answered(reply), body: Some(body), too_late: false },
            Read::Broken => Executed::failed(Outcome::InDoubt(Cause::Broken)),
        }
    }

    /// What is relayed and stored alike: without a foreign replay mark, with a date.
    fn prepare(&self, headers: &mut HeaderMap) {
        headers.remove(IDEMPOTENT_REPLAYED);
        if !headers.contains_key(DATE) {
            let now = std::time::UNIX_EPOCH + Duration::from_millis(self.clock.unix_ms());
            if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
                headers.insert(DATE, date);
            }
        }
    }

    /// Reads a response body that can be kept; leaves the others to be streamed.
    async fn read<RB>(&self, reply: &Reply, mut body: RB, hold: &mut Hold) -> Read<RB>
    where
        RB: Body<Data = Bytes> + Unpin,
    {
        let limit = self.settings.response_body;
        let announced = body.size_hint().lower();
        if reply.status == StatusCode::SWITCHING_PROTOCOLS || is_event_stream(&reply.headers) || announced > limit as u64 {
            return Read::Streams(AnswerBody::stream(body));
        }
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Read::Broken };
            // Trailers are dropped: a replay could not be told from the first answer otherwise.
            let Ok(data) = frame.into_data() else { continue };
            let length = first.as_ref().map_or(0, Bytes::len) + rest.len();
            let fits = length + data.len() <= limit && hold.grow(data.len());
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
        Read::Whole(join(first, rest))
    }

    /// Settles, then says what the client gets.
    async fn conclude<RB>(
        self: &Arc<Self>,
        policy: &Policy,
        claimed: Claimed,
        executed: Executed<RB>,
        hold: Hold,
    ) -> Result<Answered<RB>, Problem> {
        let Claimed { slot, asked, claim, permit, .. } = claimed;
        let Executed { mut outcome, body, too_late } = executed;
        let whole = take_first_answer(&mut outcome, policy);
        match self.settle(&slot, &claim, &outcome, policy).await {
            Settled::Written => {}
            Settled::Stale(current) => {
                self.meter.lost_leases.inc();
                tracing::warn!(route = %policy.route, operation = %slot, "an attempt came to its end after another had settled the operation");
                return answer_as_duplicate(slot, current.as_ref(), &asked, policy);
            }
            Settled::Unconfirmed => {
                let current = Some(claim.record.clone());
                self.settle_in_background(slot, claim, current, outcome, policy.clone(), (permit, hold));
                return Err(Problem::OutcomeUncertain { slot: Some(slot), status: Some(502) });
            }
        }
        match outcome {
            Outcome::Answered(reply) => match policy.statuses.verdict(reply.status, &reply.headers) {
                Verdict::Uncertain => {
                    tracing::warn!(route = %policy.route, operation = %slot, status = reply.status.as_u16(), "the upstream's status leaves the outcome uncertain");
                    Err(Problem::OutcomeUncertain { slot: Some(slot), status: Some(reply.status.as_u16()) })
                }
                verdict => {
                    let answer = if verdict == Verdict::Store { Answer::Executed } else { Answer::Released };
                    Ok(Answered { response: respond(whole, reply, body), answer })
                }
            },
            Outcome::NeverSent if too_late => Err(Problem::NotSent { slot }),
            Outcome::NeverSent => Err(Problem::UpstreamUnreachable { slot: Some(slot) }),
            Outcome::InDoubt(cause) => {
                tracing::warn!(route = %policy.route, operation = %slot, cause = cause.describe(), "the outcome is uncertain");
                let status = if cause == Cause::TimedOut { 504 } else { 502 };
                Err(Problem::OutcomeUncertain { slot: Some(slot), status: Some(status) })
            }
        }
    }

    /// Renews the lease until it is lost, and then does nothing for ever: the attempt reads on and completes by fence.
    async fn keep_lease(&self, slot: &Slot, fence: Fence, policy: &Policy, rule: &SendRule) -> Infallible {
        let mut pause = policy.lease / 3;
        loop {
            sleep(pause).await;
            let from_ms = self.clock.boot_ms();
            match self.store.renew(slot, fence, policy.lease, policy.unsettled_retention).await {
                Ok(true) => {
                    rule.renewed(from_ms);
                    pause = policy.lease / 3;
                }
                Ok(false) => {
                    tracing::warn!(route = %policy.route, operation = %slot, "the lease was lost while the upstream works");
                    return std::future::pending().await;
                }
                Err(error) => {
                    self.meter.store_errors.inc();
                    tracing::warn!(route = %policy.route, operation = %slot, %error, "a lease was not renewed");
                    pause = policy.lease / 10;
                }
            }
        }
    }
}

/// The fields that only the first client gets, taken out of what is stored.
fn take_first_answer(outcome: &mut Outcome, policy: &Policy) -> Option<HeaderMap> {
    let Outcome::Answered(reply) = outcome else { return None };
    if !policy.drop_headers.iter().any(|name| reply.headers.contains_key(name)) {
        return None;
    }
    let whole = reply.headers.clone();
    for name in &policy.drop_headers {
        reply.headers.remove(name);
    }
    Some(whole)
}

fn respond<RB>(whole: Option<HeaderMap>, reply: Reply, body: Option<AnswerBody<RB>>) -> Response<AnswerBody<RB>> {
    let kept = match reply.body {
        ReplyBody::Whole(bytes) => AnswerBody::whole(bytes),
        ReplyBody::NotStored => AnswerBody::whole(Bytes::new()),
    };
    let mut response = Response::new(body.unwrap_or(kept));
    *response.status_mut() = reply.status;
    *response.headers_mut() = whole.unwrap_or(reply.headers);
    response
}

/// A stale attempt's client gets what any duplicate would get, never the attempt's own copy.
fn answer_as_duplicate<RB>(
    slot: Slot,
    current: Option<&Held>,
    asked: &crate::engine::Asked,
    policy: &Policy,
) -> Result<Answered<RB>, Problem> {
    match admit(current, asked, policy) {
        Admission::Replay(reply) => replay(slot, reply),
        Admission::Refuse(refusal) => match Problem::of_refusal(refusal, slot) {
            Problem::OutcomeUncertain { slot, .. } => Err(Problem::OutcomeUncertain { slot, status: Some(502) }),
            problem => Err(problem),
        },
        _ => Err(Problem::OutcomeUncertain { slot: Some(slot), status: Some(502) }),
    }
}

enum Read<B> {
    Whole(Bytes),
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
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"))
}
