//! Requests of shadow routes: they pass through, and the gate observes what enforcing would have
//! done.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body::Body;

use super::LayerState;
use super::pass_through::BodyCopy;
use crate::engine::{FingerprintRule, Outcome};
use crate::gate::{
    Answered, Content, Hold, Identified, ProtectedRoute, RequestContext, Requester, ShadowObserver,
    UpstreamService, identify_watched,
};
use crate::record::{Cause, Reply, ReplyBody};
use crate::refusal::Refusal;

/// The place for a request's observer. The observer begins when the body has been read, and ends
/// when the response begins.
#[derive(Clone, Default)]
struct ObserverSlot(Arc<Mutex<Option<ShadowObserver>>>);

impl ObserverSlot {
    /// Stores the observer; `None` if the gate already watches too many requests.
    fn put(&self, observer: Option<ShadowObserver>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = observer;
    }

    /// Ends the observer, if there is one, with the request's outcome.
    fn end(&self, outcome: Outcome) {
        if let Some(observer) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            observer.ended(outcome);
        }
    }
}

impl LayerState {
    /// Passes a request through while the gate observes it.
    pub(super) async fn watch<S, B>(
        &self,
        guarded: &Arc<ProtectedRoute>,
        request: Request<B>,
        context: RequestContext,
        inner: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let slot = ObserverSlot::default();
        let copy = self.observing_copy(guarded, &parts, &context, slot.clone());
        let request = Request::from_parts(parts, body);
        let timeout = guarded.response_timeout;
        let result = self.pass(request, &context, inner, Some(copy), timeout).await;
        slot.end(match &result {
            Ok(answered) => Outcome::Answered(Arc::new(Reply {
                status: answered.response.status(),
                headers: answered.response.headers().clone(),
                body: ReplyBody::NotStored,
                trailers: None,
            })),
            Err(Refusal::UpstreamUnreachable { .. }) => Outcome::NeverSent,
            Err(_) => Outcome::InDoubt(Cause::Broken),
        });
        result
    }

    /// Returns the instructions for copying the request's body. The complete copy begins the
    /// observation.
    fn observing_copy(
        &self,
        guarded: &Arc<ProtectedRoute>,
        parts: &Parts,
        context: &RequestContext,
        slot: ObserverSlot,
    ) -> BodyCopy {
        // The scope is verified before any part of the body is kept.
        let verified = self.gate.verify_scope(guarded, &parts.headers, context);
        let parts = parts.clone();
        let (gate, route) = (self.gate.clone(), guarded.clone());
        let limit = self.gate.settings().request_body;
        let hold = self.gate.passing_room(context.address_share.as_ref());
        let done = move |bytes: Option<Bytes>, mut hold: Hold| {
            // If there is no memory for the decoded body, the body counts as too large.
            let content = bytes.and_then(|bytes| {
                Content::read_at_once(&parts.headers, &bytes, limit, &mut hold).ok()
            });
            let unfingerprinted = content.is_none();
            let mut policy = route.route.policy.clone();
            if unfingerprinted {
                policy.fingerprint = FingerprintRule::WithoutBody;
            }
            let content = content.unwrap_or_else(|| Bytes::new().into());
            let requester = Requester::from_head(&policy, &parts.headers, verified.as_ref());
            let hashing = &gate.settings().hashing;
            match identify_watched(&policy, hashing, &requester, &parts, &content) {
                Ok(Some(Identified { operation, .. })) => {
                    let bytes = (!unfingerprinted).then(|| content.bytes().clone());
                    slot.put(gate.observe(&route, operation, parts, bytes, hold));
                }
                Ok(None) => route.meter.count_shadow("pass"),
                Err(refusal) => {
                    route.meter.count_shadow(refusal.kind().would_refuse());
                    let tenant = requester.ok().map(|requester| requester.tenant());
                    gate.observe_unidentified(&policy, tenant, &parts.headers, &refusal);
                }
            }
        };
        BodyCopy { limit, hold, done: Box::new(done) }
    }
}
