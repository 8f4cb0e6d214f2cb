//! Claiming: a request claims its operation, or gets an answer from the operation's record.
//!
//! The files, from the top down:
//! - `rotation` looks up the operation under all hashing secrets.
//! - `admission` decides step by step what happens to the request.
//! - `swap` tries one claim.
//! - `quota` counts new operations.
//! - `probe` asks the upstream about an uncertain operation.
//! - `unconfirmed` gives claims up.
//! - `wait` lets duplicates wait.
//! - `records` reads the records that block a claim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;

use super::attempt::Claimed;
use super::budget::Hold;
use super::context::RequestContext;
use super::explain::ComparedRequest;
use super::intake::OperationKey;
use super::permits::Permit;
use super::saga_place::NewSaga;
use super::share::AddressShare;
use super::state::{Gate, ProtectedRoute};
use super::trace::trace_of;
use crate::engine::{ClaimRequest, OnFailure, Policy};
use crate::event::Context;
use crate::key::{Slot, TenantId};
use crate::record::{Extras, Held, Publication, Reply, SpanId};
use crate::refusal::Refusal;
use crate::telemetry::Trail;

mod admission;
pub(super) mod probe;
mod quota;
pub(super) mod records;
mod rotation;
mod swap;
mod unconfirmed;
mod wait;

pub(super) use unconfirmed::UnconfirmedClaim;

/// The sender of a request. It decides which permits the request takes, and whether quotas count
/// the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A client.
    Client,
    /// A component of the gateway. Its requests have their own permits, and quotas do not count
    /// them. They never wait for an active attempt, and never pass without protection.
    Gateway(CallTerms),
}

/// What the gate has to know about a call of the gateway's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallTerms {
    /// Number of events that led to the call.
    pub hops: u8,
    /// Whether the call continues an operation that began earlier: it never begins the operation.
    pub continues: bool,
    /// Whether the call only finds out what became of the operation.
    pub only_asks: bool,
}

impl Sender {
    fn is_gateway(self) -> bool {
        matches!(self, Sender::Gateway(_))
    }

    /// Returns the number of events that led to the request.
    fn hops(self) -> u8 {
        match self {
            Sender::Client => 0,
            Sender::Gateway(terms) => terms.hops,
        }
    }

    /// Returns whether the request continues an operation that began earlier.
    pub fn continues(self) -> bool {
        match self {
            Sender::Client => false,
            Sender::Gateway(terms) => terms.continues,
        }
    }

    /// Returns whether the request only finds out what became of its operation.
    pub fn only_asks(self) -> bool {
        match self {
            Sender::Client => false,
            Sender::Gateway(terms) => terms.only_asks,
        }
    }

    /// Returns whether a request of this sender is forwarded without protection while the store is
    /// unavailable.
    fn passes_without_store(self, policy: &Policy) -> bool {
        self == Sender::Client && policy.on_failure == OnFailure::FailOpen
    }
}

/// A request during its admission, before anything is sent.
pub(super) struct IncomingRequest<'r, S> {
    pub sender: Sender,
    pub parts: &'r Parts,
    pub key: &'r OperationKey,
    /// The decoded body.
    pub content: &'r Bytes,
    /// Whether `content` is decoded.
    pub is_decoded: bool,
    /// Length of the body as received, in bytes.
    pub request_bytes: u64,
    pub context: &'r RequestContext,
    /// The resource that the request locks before it is sent.
    pub resource: Option<Slot>,
    /// The service to the upstream, for probes.
    pub service: &'r mut S,
    pub hold: &'r mut Hold,
    /// How long the request waited for the first one; `None` if it did not wait.
    pub waited: Option<Duration>,
}

impl<'r, S> IncomingRequest<'r, S> {
    /// Returns the parts of the request that an explanation compares.
    fn compared(&self) -> ComparedRequest<'r> {
        ComparedRequest { parts: self.parts, content: self.content }
    }
}

/// The result of an admission without a refusal.
pub(super) enum AdmitResult {
    /// The request runs.
    Run(Claimed),
    /// The stored reply is the answer.
    Replay(Slot, Arc<Reply>),
    /// The request continues an operation, and the operation has no record that it could continue:
    /// the record is a released marker, or there is none.
    NothingToContinue {
        /// The operation.
        slot: Slot,
        /// Whether a released marker shows that the operation was not executed.
        was_released: bool,
    },
    /// The request runs unprotected: the store is unavailable, the route allows this, and the gate
    /// has seen no record of the operation.
    Unprotected,
}

/// A request during its admission.
struct PendingAdmission<'r> {
    guarded: &'r Arc<ProtectedRoute>,
    sender: Sender,
    slot: Slot,
    tenant: TenantId,
    asked: ClaimRequest,
    details: ClaimDetails<'r>,
    /// The publication of the record that was seen last, if that is unsettled.
    current_publication: Option<Publication>,
    /// The permit to use the upstream; `None` while the request waits.
    permit: Option<Permit>,
    /// The share of the client's address.
    address: Option<&'r Arc<AddressShare>>,
    /// The wait for the first request; `None` before it begins.
    waiting: Option<wait::WaitingDuplicate>,
}

impl PendingAdmission<'_> {
    /// Takes the permit to use the upstream: the request's own permit, or a new one after a wait.
    fn take_permit(&mut self, gate: &Gate) -> Result<Permit, Refusal> {
        match self.permit.take() {
            Some(permit) => Ok(permit),
            None => gate.permit_for(self.sender, self.address),
        }
    }
}

/// The content of a claim's record and event besides the operation's identity.
struct ClaimDetails<'r> {
    /// The saga that the claim would begin, if the request is for a saga. An error refuses a new
    /// saga, and not a duplicate. `None` while the request does not try to claim: duplicates that
    /// wait take no places.
    saga: Option<Result<NewSaga, Refusal>>,
    /// Whether the record of the operation may be in another slot, so that the claim may have to be
    /// given up after it is confirmed.
    may_be_elsewhere: bool,
    /// The key, if the record keeps it for probes in the background.
    kept: Option<Bytes>,
    /// What the operation publishes, if the claim begins it.
    publication: Option<Publication>,
    extras: Extras,
    trail: Option<Trail>,
    fields: BTreeMap<String, String>,
    headers: &'r HeaderMap,
    request_bytes: u64,
}

impl ClaimDetails<'_> {
    /// Returns the context of the claim's event.
    fn claim_context(&self, tenant_mark: String) -> Context {
        Context { scope: Some(tenant_mark), fields: self.fields.clone(), ..self.outcome_context() }
    }

    /// Returns the context of the outcome's event.
    fn outcome_context(&self) -> Context {
        Context {
            trace: trace_of(self.headers),
            request_bytes: Some(self.request_bytes),
            ..Context::default()
        }
    }

    /// Links the request's trace to the trace of the attempt that wrote the record.
    fn link_to(&self, held: &Held) {
        if let (Some(trail), Some(SpanId { trace, span })) = (&self.trail, held.record.extras.span)
        {
            trail.links(trace, span);
        }
    }
}

impl Gate {
    /// Takes a permit to use the upstream.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`], if no permit is free for this sender.
    pub(super) fn permit_for(
        &self,
        sender: Sender,
        address: Option<&Arc<AddressShare>>,
    ) -> Result<Permit, Refusal> {
        let permit = match sender {
            Sender::Client => self.in_flight.protected(address),
            Sender::Gateway(_) => self.internal.take(),
        };
        permit.ok_or(Refusal::Overloaded)
    }
}
