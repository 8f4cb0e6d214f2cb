//! Requests of shadow routes: they pass through, and the gate observes what enforcing would have
//! done.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Request;
use http_body::Body;

use super::LayerState;
use super::pass_through::BodyCopy;
use crate::engine::{FingerprintRule, Outcome};
use crate::gate::{
    Answered, Content, Hold, Observation, ProtectedRoute, UpstreamService, identify,
};
use crate::record::{Cause, Reply, ReplyBody};
use crate::refusal::Refusal;

/// The place of a request's observation, which begins when the body is read and ends when the
/// response begins.
#[derive(Clone, Default)]
struct ObservationSlot(Arc<Mutex<Option<Observation>>>);

impl ObservationSlot {
    /// Stores the observation, which is `None` where the gate has no place for it.
    fn put(&self, observation: Option<Observation>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = observation;
    }

    /// Ends the observation, if there is one, with the request's outcome.
    fn end(&self, outcome: Outcome) {
        if let Some(observation) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            observation.ended(outcome);
        }
    }
}

impl LayerState {
    /// Passes a request through while the gate observes it.
    pub(super) async fn watch<S, B>(
        &self,
        guarded: &Arc<ProtectedRoute>,
        request: Request<B>,
        inner: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let slot = ObservationSlot::default();
        let copy = self.observing_copy(guarded, &parts, slot.clone());
        let request = Request::from_parts(parts, body);
        let result = self.pass(request, inner, Some(copy), guarded.response_timeout).await;
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

    /// Returns a copy of the request's body that begins the observation when it is complete.
    fn observing_copy(
        &self,
        guarded: &Arc<ProtectedRoute>,
        parts: &http::request::Parts,
        slot: ObservationSlot,
    ) -> BodyCopy {
        let parts = parts.clone();
        let (gate, route) = (self.gate.clone(), guarded.clone());
        let limit = self.gate.settings().request_body;
        let hold = self.gate.passing_room(&parts.extensions);
        let done = move |bytes: Option<Bytes>, mut hold: Hold| {
            // A body without memory for its decoded form counts as one that was too large.
            let content = bytes.and_then(|bytes| {
                Content::read_at_once(&parts.headers, &bytes, limit, &mut hold).ok()
            });
            let unfingerprinted = content.is_none();
            let mut policy = route.route.policy.clone();
            if unfingerprinted {
                policy.fingerprint = FingerprintRule::WithoutBody;
            }
            let content = content.unwrap_or_else(|| Bytes::new().into());
            match identify(&policy, &gate.settings().hashing, &parts, &content) {
                Ok(Some(identified)) => {
                    let bytes = (!unfingerprinted).then(|| content.bytes().clone());
                    slot.put(gate.observe(&route, identified, parts, bytes, hold));
                }
                Ok(None) => route.meter.count_shadow("pass"),
                Err(refusal) => {
                    route.meter.count_shadow(refusal.kind().would_refuse());
                    gate.observe_unidentified(&policy, &parts, &refusal);
                }
            }
        };
        BodyCopy { limit, hold, done: Box::new(done) }
    }
}
