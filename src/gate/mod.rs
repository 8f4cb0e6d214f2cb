//! The steps of a protected request: identify it, claim its operation, forward it in a task of its
//! own, settle the outcome, answer the client.
//!
//! Danger: between the claim and the settled record the process may stop, the client may leave, and
//! the store may stop answering. The gate never guesses. It stores an unknown outcome as uncertain,
//! and it relays no answer of the upstream before the outcome is stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};

use crate::engine::ResourceRule;
use crate::telemetry::{Answer, Trail, Work};

mod answer;
mod attempt;
mod background;
mod bar;
mod budget;
mod call;
mod claim;
mod close_delimited;
mod context;
mod explain;
mod full_sinks;
mod identity_check;
mod intake;
mod kept_versions;
mod lookup;
mod observation_buffer;
mod operator;
mod outflow;
mod passing;
mod payload;
mod permits;
mod prefer;
mod protected_route;
mod quota;
mod record_change;
mod resource_lock;
mod resource_read;
mod resource_turns;
mod resource_versions;
mod resource_write;
mod response;
mod run;
mod saga;
mod saga_decision;
mod saga_place;
mod saga_report;
mod saga_summary;
mod send_rule;
mod shadow;
mod share;
mod shared_permit;
mod state;
mod stream;
mod trace;
mod trailers;
mod upstream_service;

pub use crate::forwarding::{BoxError, ForwardError};
pub use crate::refusal::{BodyKind, Explanation, Malformation, Refusal};
use answer::SettledAnswer;
pub use answer::{Answered, IDEMPOTENT_REPLAYED};
pub use background::{reconcile, sweep};
pub use budget::{Budget, Hold};
pub use call::{CallOutcome, InternalCaller, InternalOperation};
use claim::{AdmitResult, Sender};
pub use close_delimited::CloseDelimited;
pub use context::{ClientSubject, RequestContext};
pub use full_sinks::FullSinks;
pub use identity_check::{IdentityCheckError, check_identities, notes};
use intake::upstream_key::UpstreamKeyPlacement;
pub use intake::{
    Content, Identified, Intake, OperationKey, RequestedOperation, Requester, VerifiedScope,
    identify_watched, keep_identifying_fields,
};
pub use lookup::{LookupError, scope_names, tenant_names};
pub use operator::OperatorError;
pub use outflow::Outflow;
pub use payload::{AnswerBody, Payload};
pub use prefer::ClientPreference;
pub use protected_route::{NextSaga, OwnedSaga, SagaRequest, SagaRunner};
pub use resource_read::ResourceRead;
use resource_write::ResourceWrite;
pub use resource_write::require_condition;
use run::IdentifiedRequest;
pub use saga::{SagaTake, SagaWrite};
pub use saga_decision::SagaDecisionError;
pub use saga_place::SagaPlace;
use saga_report::accept_begun;
pub use saga_report::{SagaLookup, SagaReport};
pub use saga_summary::{SagaStepSummary, SagaSummary};
pub use send_rule::SendRule;
pub use shadow::ShadowObserver;
pub use share::AddressShare;
pub use shared_permit::SharedPermit;
pub use state::{Gate, ProtectedRoute, Settings};
pub use stream::{Movement, Stream};
pub use upstream_service::UpstreamService;

/// A request of a protected route, with its body in memory.
pub struct BufferedRequest {
    /// The head.
    pub parts: Box<Parts>,
    /// The head as [`Gate::read_head`] parsed it.
    pub intake: Intake,
    /// The body as received.
    pub body: Bytes,
    /// The memory of the body, taken from the common budget.
    pub hold: Hold,
    /// The request's context.
    pub context: RequestContext,
}

impl Gate {
    /// Verifies the scope of a request, if the route takes it from a token or a client certificate.
    pub fn verify_scope(
        &self,
        guarded: &ProtectedRoute,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Option<VerifiedScope> {
        let (rule, keyring) = (&guarded.route.policy.scope, guarded.keyring.as_ref());
        let subject = context.client_subject.as_ref();
        VerifiedScope::verify(rule, keyring, headers, subject, &self.clock)
    }

    /// Reads the head of a request of a protected route, before the body is read. Returns `None` if
    /// the request passes through without protection.
    ///
    /// # Errors
    /// Returns the refusal, if the head alone is a reason to refuse the request.
    pub fn read_head(
        &self,
        guarded: &ProtectedRoute,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<Option<Intake>, Refusal> {
        let verified = self.verify_scope(guarded, headers, context);
        Intake::from_head(&guarded.route.policy, headers, verified.as_ref())
    }

    /// Reads the head of a write on a resource that has no key. `unkeyed` is
    /// [`ProtectedRoute::unkeyed`].
    ///
    /// # Errors
    /// The scope or the caller is missing, invalid or ambiguous.
    pub fn read_unkeyed_head(
        &self,
        unkeyed: &ProtectedRoute,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<Intake, Refusal> {
        let verified = self.verify_scope(unkeyed, headers, context);
        Requester::from_head(&unkeyed.route.policy, headers, verified.as_ref())
            .map(Intake::without_key)
    }

    /// Identifies a request without a key, if it is a write on a resource: it is an operation of
    /// its own, under a random key. Returns the route for it, too.
    ///
    /// # Errors
    /// The upstream compares versions itself, and the write has no condition.
    fn identify_unkeyed<'g>(
        &self,
        guarded: &'g ProtectedRoute,
        requester: Option<Requester>,
        parts: &Parts,
        content: &Content,
    ) -> Result<Option<(&'g Arc<ProtectedRoute>, Identified)>, Refusal> {
        let Some(rule) = &guarded.route.policy.resource else { return Ok(None) };
        require_condition(rule, &parts.method, &parts.headers)?;
        let unkeyed = guarded.unkeyed.as_ref().filter(|_| ResourceRule::is_write(&parts.method));
        let (Some(unkeyed), Some(requester)) = (unkeyed, requester) else { return Ok(None) };
        let (policy, hashing) = (&unkeyed.route.policy, &self.settings.hashing);
        let (mut key, halves) = ([0; 32], [self.entropy.salt(), self.entropy.salt()]);
        key.copy_from_slice(halves.as_flattened());
        let intake = Intake::without_key(requester);
        Ok(Some((unkeyed, intake.under_key(policy, hashing, parts, content, key))))
    }

    /// Answers a request of a protected route.
    ///
    /// The attempt runs in a task of its own. It continues if the client leaves, or if the caller
    /// drops this future.
    pub async fn handle<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        request: BufferedRequest,
        service: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        let Some(runner) = &guarded.saga else {
            return self.handle_once(guarded, request, service).await;
        };
        let preference = ClientPreference::of(&request.parts.headers);
        match Box::pin(self.handle_once(guarded, request, service)).await {
            Err(refusal) => Box::pin(self.saga_refused(guarded, runner, preference, refusal)).await,
            answered => answered,
        }
    }

    async fn handle_once<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        request: BufferedRequest,
        service: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        let BufferedRequest { mut parts, intake, body, hold, context } = request;
        let policy = &guarded.route.policy;
        let address = context.address_share.as_ref();

        // Identify.
        let turn = self.heavy_work.turn_to_read(address, &parts.headers, &body).await?;
        let mut decoded = hold.beside();
        let limit = self.settings.request_body;
        let content = Content::read(&parts.headers, &body, limit, &mut decoded).await?;
        let requester = policy.resource.as_ref().map(|_| *intake.requester());
        let identified = intake.with_body(policy, &self.settings.hashing, &parts, &content)?;
        let (guarded, identified) = match identified {
            Some(identified) => (guarded, identified),
            None => match self.identify_unkeyed(guarded, requester, &parts, &content)? {
                Some(identified) => identified,
                None => {
                    let unprotected = UnprotectedRequest { parts, body, context };
                    return Box::pin(self.pass(guarded, unprotected, service, Answer::Passed))
                        .await;
                }
            },
        };
        drop(turn);
        let (policy, Identified { key, operation }) = (&guarded.route.policy, identified);
        let write = ResourceWrite::take(policy, &mut parts)?;

        // Claim.
        if self.closed.load(Ordering::Acquire) {
            // The process is about to end, and could not settle a new claim before the claim's
            // lease ends.
            return Err(Refusal::Overloaded);
        }
        let upstream_key = UpstreamKeyPlacement::new(policy, &parts, &body, &key)?;
        let permit = self.permit_for(Sender::Client, address)?;
        let mut request = IdentifiedRequest {
            sender: Sender::Client,
            write,
            parts,
            key,
            body,
            content,
            _content_hold: decoded,
            upstream_key,
            context,
            hold,
            service,
        };
        match self.admit_identified(guarded, operation, permit, &mut request).await? {
            AdmitResult::Run(claimed) => match &guarded.saga {
                Some(runner) => {
                    let IdentifiedRequest { parts, context, hold, .. } = request;
                    let preference = ClientPreference::of(&parts.headers);
                    let place = (context.address_share.as_ref(), hold, preference.longest_wait());
                    let begun = Box::pin(self.begin_saga(guarded, runner, claimed, place)).await;
                    accept_begun(begun, preference)
                }
                None => self.run_claimed(guarded, claimed, request).await?.into_response(),
            },
            AdmitResult::Replay(slot, reply) => {
                SettledAnswer::replayed(slot, reply, request.hold).into_response()
            }
            // Does not occur: a client's request begins its operation.
            AdmitResult::NothingToContinue { slot, .. } => Err(Refusal::ResultExpired { slot }),
            AdmitResult::Unprotected => {
                tracing::warn!(
                    route = %policy.route,
                    "the store is unavailable: request forwarded without protection"
                );
                // Now only the upstream can recognise a duplicate, so it gets the key.
                let context = std::mem::take(&mut request.context);
                let (parts, body, _hold, service) = request.carry_key();
                let unprotected = UnprotectedRequest { parts, body, context };
                let answer = Answer::Unprotected;
                Box::pin(self.pass(guarded, unprotected, service, answer)).await
            }
        }
    }

    /// Forwards a request without protection.
    async fn pass<S, B>(
        &self,
        guarded: &ProtectedRoute,
        request: UnprotectedRequest,
        mut service: S,
        answer: Answer,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
    {
        let UnprotectedRequest { parts, body, context } = request;
        let mut step = Trail::step(context.trail.as_ref(), Work::Forward);
        step.result("failed");
        let idempotent = parts.method.is_idempotent();
        let permit = self.admit_passing(context.address_share.as_ref(), false)?;
        let mut request = Request::from_parts(*parts, Payload::whole(body, None));
        permit.accompany(&mut request);
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        };
        match tokio::time::timeout(guarded.response_timeout, sent).await {
            Ok(Ok(response)) => {
                step.answered(response.status().as_u16());
                let response = response.map(|body| AnswerBody::stream(body).keeping(permit));
                Ok(Answered { response, answer })
            }
            Ok(Err(error)) => Err(ForwardError::of(error.into()).unprotected(idempotent)),
            Err(_) => Err(ForwardError::TimedOut.unprotected(idempotent)),
        }
    }
}

/// A buffered request that is forwarded without protection.
struct UnprotectedRequest {
    parts: Box<Parts>,
    body: Bytes,
    context: RequestContext,
}

#[cfg(test)]
mod tests;
