//! The steps of every protected request after its identification: claim, attempt, settle. Clients'
//! requests and the gateway's own calls use the same code here, so both get the same guarantees.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::request::Parts;

use super::answer::SettledAnswer;
use super::attempt::{Attempt, Claimed};
use super::budget::Hold;
use super::claim::probe::is_never_probed;
use super::claim::{AdmitResult, IncomingRequest, Sender};
use super::context::RequestContext;
use super::intake::upstream_key::UpstreamKeyPlacement;
use super::intake::{Content, OperationKey, RequestedOperation};
use super::payload::Payload;
use super::permits::Permit;
use super::resource_write::ResourceWrite;
use super::state::{Gate, ProtectedRoute};
use super::upstream_service::UpstreamService;
use crate::refusal::Refusal;

/// A request with a known operation, until it is sent.
pub(in crate::gate) struct IdentifiedRequest<S> {
    pub sender: Sender,
    pub parts: Box<Parts>,
    pub key: OperationKey,
    pub body: Bytes,
    /// The decoded body.
    pub content: Content,
    /// The memory of the decoded body.
    pub _content_hold: Hold,
    /// The changes that put the key where the upstream looks for it.
    pub upstream_key: UpstreamKeyPlacement,
    pub context: RequestContext,
    /// What a write on a resource brings along; `None` for other requests.
    pub write: Option<Box<ResourceWrite>>,
    /// The memory of the body and the answer.
    pub hold: Hold,
    pub service: S,
}

impl<S> IdentifiedRequest<S> {
    /// Writes the key into the request, in the form for the upstream.
    pub fn carry_key(self) -> (Box<Parts>, Bytes, Hold, S) {
        let IdentifiedRequest { mut parts, mut body, upstream_key, hold, service, .. } = self;
        upstream_key.apply(&mut parts, &mut body);
        (parts, body, hold, service)
    }
}

impl Gate {
    /// Claims the operation of a request, or decides how the request is answered instead. Records
    /// an answer to a duplicate as an observation.
    pub(in crate::gate) async fn admit_identified<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        operation: RequestedOperation,
        permit: Permit,
        request: &mut IdentifiedRequest<S>,
    ) -> Result<AdmitResult, Refusal>
    where
        S: UpstreamService<B>,
    {
        let mut incoming = IncomingRequest {
            sender: request.sender,
            parts: &request.parts,
            key: &request.key,
            content: request.content.bytes(),
            is_decoded: request.content.is_decoded(),
            request_bytes: request.body.len() as u64,
            context: &request.context,
            resource: request.write.as_ref().and_then(|write| write.resource),
            service: &mut request.service,
            hold: &mut request.hold,
            waited: None,
        };
        let tenant = operation.tenant;
        let admitted =
            self.admit_under_all_secrets(guarded, operation, permit, &mut incoming).await;
        let waited = incoming.waited;
        let headers = &request.parts.headers;
        // A sink looks at its call until it ends: these looks are no duplicates of a client.
        if !request.sender.continues() {
            self.observe_duplicate(&guarded.route.policy, tenant, headers, &admitted, waited);
        }
        admitted
    }

    /// Runs a claimed request in a task of its own, which continues if the sender leaves. Returns
    /// when the outcome is settled.
    pub(in crate::gate) async fn run_claimed<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        claimed: Claimed,
        mut request: IdentifiedRequest<S>,
    ) -> Result<SettledAnswer<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        let policy = &guarded.route.policy;
        let slot = claimed.slot;
        let trail = request.context.trail.take();
        let write = request.write.take();
        let never_probed = is_never_probed(policy, &request.key);
        let (parts, body, hold, service) = request.carry_key();
        let request = Request::from_parts(*parts, Payload::whole(body, Some(claimed.rule.clone())));
        let (gate, guarded) = (self.clone(), guarded.clone());
        let attempt = Attempt { gate, guarded, claimed, request, service, hold, trail, write };
        let answer = match self.tasks.spawn(Box::pin(Box::new(attempt).run())).await {
            Ok(answer) => answer,
            // The task panicked. When the lease ends, the operation becomes uncertain.
            Err(_) => Err(Refusal::OutcomeUncertain {
                slot: Some(slot),
                status: None,
                retry_after: policy.uncertain_retry_after(),
            }),
        };
        match answer {
            // No probe can be sent, so a repeated request would get the same answer. An operator
            // has to settle the operation.
            Err(Refusal::OutcomeUncertain { slot, status, .. }) if never_probed => {
                Err(Refusal::OutcomeUncertain { slot, status, retry_after: None })
            }
            answer => answer,
        }
    }
}
