//! Probes: when a duplicate of an uncertain operation arrives, the gate asks the upstream whether
//! it has executed the operation.

use std::sync::Arc;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, COOKIE, HOST, HeaderValue};
use http::{HeaderMap, HeaderName, Request, Uri};
use tokio::time::timeout;

use super::IncomingRequest;
use crate::engine::{
    Admission, Belief, CallerRule, ClaimRequest, DuplicateRefusal, Finding, Next, OnUncertain,
    Policy, Probe, ScopeRule, believe, believe_in_background, is_grpc,
};
use crate::event::Context;
use crate::gate::budget::Hold;
use crate::gate::close_delimited::{CloseDelimited, may_be_cut};
use crate::gate::intake::OperationKey;
use crate::gate::intake::upstream_key::key_for_upstream;
use crate::gate::payload::Payload;
use crate::gate::response::ReceivedBody;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::gate::trace::trace_of;
use crate::gate::upstream_service::UpstreamService;
use crate::key::Slot;
use crate::record::{Fence, Held, Reply, ReplyBody, State};
use crate::refusal::Refusal;
use crate::store::Swap;

/// The result of a probe for a duplicate.
pub(super) enum ProbeResult {
    /// The upstream has executed the operation. Its answer is stored as the result.
    Found(Arc<Reply>),
    /// No result was stored, and the duplicate continues with this admission.
    Decided(Admission),
    /// The record changed meanwhile; this is the current record.
    Changed(Option<Held>),
}

impl Gate {
    /// Probes the upstream about an uncertain operation, because a duplicate has arrived. `held` is
    /// the uncertain record.
    pub(super) async fn probe_for_duplicate<S, B>(
        &self,
        guarded: &ProtectedRoute,
        probe: &Probe,
        slot: &Slot,
        asked: &ClaimRequest,
        held: &Held,
        duplicate: &mut IncomingRequest<'_, S>,
    ) -> Result<ProbeResult, Refusal>
    where
        S: UpstreamService<B>,
    {
        let policy = &guarded.route.policy;
        let key = key_for_upstream(policy, duplicate.key);
        let Some(mut request) = probe_request(probe, &key) else {
            self.count_withheld_probe(policy, slot);
            let refusal = DuplicateRefusal::uncertain(None);
            return Ok(ProbeResult::Decided(Admission::Refuse(refusal)));
        };
        let headers = if probe.headers.is_empty() {
            credentials(policy, &duplicate.parts.headers)
        } else {
            probe.headers.clone()
        };
        request.headers_mut().extend(headers);
        if let Some(host) = duplicate.parts.headers.get(HOST) {
            request.headers_mut().insert(HOST, host.clone());
        }
        *request.extensions_mut() = duplicate.parts.extensions.clone();
        let sending = self.send_probe(policy, probe, request, duplicate.service, duplicate.hold);
        let finding = timeout(guarded.response_timeout, sending).await.unwrap_or(Finding::Unclear);
        self.count_finding(&finding);
        let mut belief = believe(held, finding, asked.fence, policy);
        // A write on a resource that the upstream has not executed is released first. As an
        // attempt over an uncertain operation it could take another version of the resource for
        // its own work, and would stay uncertain for ever.
        let takes_lock = held.record.extras.resource.is_some();
        let releases = duplicate.sender.only_asks() || takes_lock;
        if releases && matches!(belief, Belief::Admit(Admission::Claim(_))) {
            // Not the fence of the request: it would take the marker for its own.
            let fence = Fence(self.entropy.next());
            let released = believe_in_background(held, Finding::Absent, fence, policy);
            belief = released.map_or(belief, Belief::Write);
        }
        match belief {
            Belief::Write(next) => {
                self.store_result(policy, slot, held, next, &duplicate.parts.headers).await
            }
            Belief::Admit(admission) => Ok(ProbeResult::Decided(admission)),
        }
    }

    /// Writes the record that follows from a finding.
    async fn store_result(
        &self,
        policy: &Policy,
        slot: &Slot,
        held: &Held,
        next: Next,
        headers: &HeaderMap,
    ) -> Result<ProbeResult, Refusal> {
        let context = || Context { trace: trace_of(headers), ..Context::default() };
        let expected = Some(held.record.version);
        let swapped = self
            .write(slot, expected, (&next).into(), policy, context)
            .await
            .map_err(|error| self.store_failed(slot, &error))?;
        match (swapped, &next.record.state) {
            (Swap::Stored, State::Completed { reply, .. }) => {
                tracing::info!(
                    route = %policy.route,
                    operation = %slot,
                    status = reply.status.as_u16(),
                    "probe found the operation: the upstream's answer is the result"
                );
                Ok(ProbeResult::Found(reply.clone()))
            }
            // After any other state the admission starts again.
            (Swap::Stored, _) => {
                Ok(ProbeResult::Changed(Some(Held { record: next.record, ..held.clone() })))
            }
            (Swap::Stale(held), _) => Ok(ProbeResult::Changed(held)),
            (Swap::Large(_), _) => {
                let loaded = self.store.records.load(slot).await;
                let held = loaded.map_err(|error| self.store_failed(slot, &error))?;
                Ok(ProbeResult::Changed(held))
            }
        }
    }

    /// Counts the finding of a probe.
    pub(in crate::gate) fn count_finding(&self, finding: &Finding) {
        let counter = match finding {
            Finding::Found(_) => &self.meter.probes.found,
            Finding::Absent => &self.meter.probes.absent,
            Finding::Unclear => &self.meter.probes.unclear,
        };
        counter.inc();
    }

    /// Counts and logs a probe that is not sent, because the key does not fit into the probe's
    /// path.
    pub(in crate::gate) fn count_withheld_probe(&self, policy: &Policy, slot: &Slot) {
        self.meter.probes.withheld.inc();
        tracing::warn!(
            route = %policy.route,
            operation = %slot,
            "probe not sent: the key is not one segment of its path; settle the operation by hand"
        );
    }

    /// Sends a probe and reads the answer. A failed probe gives no information about the operation:
    /// its finding is unclear.
    pub(in crate::gate) async fn send_probe<S, B>(
        &self,
        policy: &Policy,
        probe: &Probe,
        request: Request<Payload<B>>,
        service: &mut S,
        hold: &mut Hold,
    ) -> Finding
    where
        S: UpstreamService<B>,
    {
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        };
        let Ok(response) = sent.await else { return Finding::Unclear };
        let (mut head, body) = response.into_parts();
        let close_delimited = head.extensions.get::<CloseDelimited>().is_some();
        self.prepare_fields(&mut head.headers);
        // The answer may become the result, and results are stored without these fields.
        for name in policy.unstored_fields() {
            head.headers.remove(name);
        }
        let mut reply = Reply {
            status: head.status,
            headers: head.headers,
            body: ReplyBody::NotStored,
            trailers: None,
        };
        match self.read_body(&reply, body, hold).await {
            ReceivedBody::Whole(bytes, _)
                if close_delimited && may_be_cut(&reply.headers, &bytes) =>
            {
                return Finding::Unclear;
            }
            // A gRPC answer has its status in its trailers, and no rule of a probe reads trailers.
            ReceivedBody::Whole(..) if is_grpc(&reply.headers) => return Finding::Unclear,
            ReceivedBody::Whole(bytes, _) => reply.body = ReplyBody::Whole(bytes),
            ReceivedBody::Streams(_) => {}
            ReceivedBody::Broken => return Finding::Unclear,
        }
        probe.finding(reply)
    }
}

/// Returns whether the operation of a request can't be probed, because its key does not fit into
/// the probe's path.
pub(in crate::gate) fn is_never_probed(policy: &Policy, key: &OperationKey) -> bool {
    let OnUncertain::Probe(probe) = &policy.on_uncertain else { return false };
    probe.path_for(&key_for_upstream(policy, key)).is_none()
}

/// Creates the request of a probe, without credentials. Returns `None` if the key does not fit into
/// the path.
pub(in crate::gate) fn probe_request<B>(probe: &Probe, key: &str) -> Option<Request<Payload<B>>> {
    let mut request = Request::new(Payload::default());
    *request.method_mut() = probe.method.clone();
    *request.uri_mut() = Uri::try_from(probe.path_for(key)?).ok()?;
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
    // The gate could not find a member in an encoded body. The body may also become the reply for a
    // client that can't decode.
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Some(request)
}

/// Returns the credentials of the duplicate.
fn credentials(policy: &Policy, headers: &HeaderMap) -> HeaderMap {
    static USUAL: [HeaderName; 3] = [AUTHORIZATION, HeaderName::from_static("x-api-key"), COOKIE];
    let caller: &[HeaderName] = match &policy.caller {
        CallerRule::Headers(names) => names,
        // `USUAL` already contains the whole `Cookie` field.
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
