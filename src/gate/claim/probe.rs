//! Asking the upstream what became of an uncertain operation, when a duplicate of it arrives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, COOKIE, HOST, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, Response, Uri};
use http_body::Body;
use tower_service::Service;

use crate::engine::{
    Admission, Asked, Belief, CallerRule, DuplicateRefusal, Finding, OnUncertain, Policy, Probe,
    ScopeRule, believe, is_grpc,
};
use crate::event::Context;
use crate::gate::attempt::Read;
use crate::gate::background::event_log::trace_of;
use crate::gate::budget::Hold;
use crate::gate::close_delimited::{CloseDelimited, may_be_cut};
use crate::gate::context::RequestContext;
use crate::gate::intake::OperationKey;
use crate::gate::intake::upstream_key::key_for_upstream;
use crate::gate::payload::{BoxError, Payload};
use crate::gate::{Gate, ProtectedRoute, Refusal};
use crate::key::Slot;
use crate::record::{Held, Reply, ReplyBody, State};
use crate::store::Swap;

/// What a gate needs to ask: the duplicate, whose credentials it may use, and a way to the upstream.
pub(in crate::gate) struct Asker<'r, S> {
    pub parts: &'r Parts,
    pub key: &'r OperationKey,
    /// Its body, decoded.
    pub content: &'r Bytes,
    /// Bytes of its body as it came.
    pub request_bytes: u64,
    pub context: &'r RequestContext,
    pub service: &'r mut S,
    pub hold: &'r mut Hold,
    /// How long the duplicate waited for the first request.
    pub waited: Option<Duration>,
}

/// What asking came to.
pub(in crate::gate) enum Told {
    /// The result, which is stored now.
    Result(Arc<Reply>),
    /// Do this.
    Admit(Admission),
    /// The record moved meanwhile; this is it.
    Moved(Option<Held>),
}

impl Gate {
    /// Asks the upstream. `held` is the uncertain record as it was before.
    pub(in crate::gate) async fn ask<S, B, RB>(
        &self,
        guarded: &ProtectedRoute,
        probe: &Probe,
        (slot, asked): (&Slot, &Asked),
        held: &Held,
        asker: &mut Asker<'_, S>,
    ) -> Result<Told, Refusal>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let policy = &guarded.route.policy;
        let key = key_for_upstream(policy, asker.key);
        let Some(mut request) = question(probe, &key) else {
            self.count_withheld(policy, slot);
            return Ok(Told::Admit(Admission::Refuse(DuplicateRefusal::uncertain(None))));
        };
        let headers = if probe.headers.is_empty() {
            credentials(policy, &asker.parts.headers)
        } else {
            probe.headers.clone()
        };
        request.headers_mut().extend(headers);
        if let Some(host) = asker.parts.headers.get(HOST) {
            request.headers_mut().insert(HOST, host.clone());
        }
        *request.extensions_mut() = asker.parts.extensions.clone();
        let asking = self.put_question(policy, probe, request, asker.service, asker.hold);
        let finding = tokio::time::timeout(guarded.response_timeout, asking)
            .await
            .unwrap_or(Finding::Unclear);
        self.conclude((slot, asked), held, finding, policy, &asker.parts.headers).await
    }

    /// What a finding makes of the record, written.
    async fn conclude(
        &self,
        (slot, asked): (&Slot, &Asked),
        held: &Held,
        finding: Finding,
        policy: &Policy,
        headers: &HeaderMap,
    ) -> Result<Told, Refusal> {
        self.count(&finding);
        match believe(held, finding, asked.fence, policy) {
            Belief::Write(next) => {
                let told = || Context { trace: trace_of(headers), ..Context::default() };
                let swapped = self
                    .write(
                        slot,
                        Some(held.record.version),
                        (&next.record, next.lifetime),
                        policy,
                        told,
                    )
                    .await;
                match (swapped.map_err(|error| self.store_failed(slot, &error))?, next.record.state)
                {
                    (Swap::Stored, State::Completed { reply, .. }) => {
                        tracing::info!(route = %policy.route, operation = %slot, status = reply.status.as_u16(), "the upstream knows the operation: its answer is the result");
                        Ok(Told::Result(reply))
                    }
                    // Only results are written here; of anything else the record is looked at anew.
                    (Swap::Stored, _) => Ok(Told::Moved(Some(held.clone()))),
                    (Swap::Stale(held), _) => Ok(Told::Moved(held)),
                    (Swap::Large(_), _) => {
                        let held = self
                            .store
                            .records
                            .load(slot)
                            .await
                            .map_err(|error| self.store_failed(slot, &error))?;
                        Ok(Told::Moved(held))
                    }
                }
            }
            Belief::Admit(admission) => Ok(Told::Admit(admission)),
        }
    }

    /// Counts what an upstream said.
    pub(in crate::gate) fn count(&self, finding: &Finding) {
        let counter = match finding {
            Finding::Found(_) => &self.meter.probes.found,
            Finding::Absent => &self.meter.probes.absent,
            Finding::Unclear => &self.meter.probes.unclear,
        };
        counter.inc();
    }

    /// Counts and logs a probe that is not sent, because the key can't be filled into its path.
    pub(in crate::gate) fn count_withheld(&self, policy: &Policy, slot: &Slot) {
        self.meter.probes.withheld.inc();
        tracing::warn!(route = %policy.route, operation = %slot, "probe not sent: the key is not one segment of its path; settle the operation by hand");
    }

    /// Sends a question, and reads its answer. Whatever goes wrong says nothing of the operation.
    pub(in crate::gate) async fn put_question<S, B, RB>(
        &self,
        policy: &Policy,
        probe: &Probe,
        request: Request<Payload<B>>,
        service: &mut S,
        hold: &mut Hold,
    ) -> Finding
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
        let Ok(response) = sent.await else { return Finding::Unclear };
        let (mut head, body) = response.into_parts();
        let close_delimited = head.extensions.get::<CloseDelimited>().is_some();
        self.prepare(&mut head.headers);
        // It may become the result, and those are never stored.
        for name in policy.unstored_fields() {
            head.headers.remove(name);
        }
        let mut reply = Reply {
            status: head.status,
            headers: head.headers,
            body: ReplyBody::NotStored,
            trailers: None,
        };
        match self.read(&reply, body, hold).await {
            Read::Whole(bytes, _) if close_delimited && may_be_cut(&reply.headers, &bytes) => {
                return Finding::Unclear;
            }
            // Its status stands in its trailers, which no rule of a probe looks at.
            Read::Whole(..) if is_grpc(&reply.headers) => return Finding::Unclear,
            Read::Whole(bytes, _) => reply.body = ReplyBody::Whole(bytes),
            Read::Streams(_) => {}
            Read::Broken => return Finding::Unclear,
        }
        probe.finding(reply)
    }
}

/// Whether no probe is ever sent for a request's operation, because its key can't be filled into the probe's path.
pub(in crate::gate) fn is_never_probed(policy: &Policy, key: &OperationKey) -> bool {
    let OnUncertain::Probe(probe) = &policy.on_uncertain else { return false };
    probe.path_for(&key_for_upstream(policy, key)).is_none()
}

/// The request that asks, but for who asks. `None` where the key can't be filled into the path.
pub(in crate::gate) fn question<B>(probe: &Probe, key: &str) -> Option<Request<Payload<B>>> {
    let mut request = Request::new(Payload::default());
    *request.method_mut() = probe.method.clone();
    *request.uri_mut() = Uri::try_from(probe.path_for(key)?).ok()?;
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
    // Else a member could not be looked for, and a client that doesn't decode would get what it can't read.
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Some(request)
}

/// The duplicate's fields that say who asks.
fn credentials(policy: &Policy, headers: &HeaderMap) -> HeaderMap {
    static USUAL: [HeaderName; 3] = [AUTHORIZATION, HeaderName::from_static("x-api-key"), COOKIE];
    let caller: &[HeaderName] = match &policy.caller {
        CallerRule::Headers(names) => names,
        // The whole field is among the usual ones.
        CallerRule::Cookie(_) | CallerRule::Scope => &[],
    };
    let scope: &[HeaderName] = match &policy.scope {
        ScopeRule::Headers(names) => names,
        ScopeRule::Token(rule) => std::slice::from_ref(&rule.header),
        ScopeRule::Shared | ScopeRule::Cookie(_) | ScopeRule::ClientCertificate => &[],
    };
    let mut found = HeaderMap::new();
    for name in USUAL.iter().chain(caller).chain(scope) {
        if !found.contains_key(name) {
            found.extend(headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
    }
    found
}
