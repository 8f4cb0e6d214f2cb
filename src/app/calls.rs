//! The way of sinks that call APIs: through the routes and the gate of a configuration.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Uri};

use crate::gate::{CallOutcome, InternalCaller};
use crate::layer::{OncewardLayer, RoutedCall, UnroutedCall};
use crate::outbox::caller::{CallRouteError, OperationCaller, PreparedCall, SinkCall};
use crate::proxy::{Forward, RequestBody};
use crate::record::{AnnouncedState, StatusClass};

/// The routes of a configuration, for sinks.
pub(super) struct SinkCaller {
    pub layer: OncewardLayer,
    pub forward: Forward<RequestBody>,
}

#[async_trait]
impl OperationCaller for SinkCaller {
    fn prepare(&self, call: &SinkCall) -> Result<PreparedCall, CallRouteError> {
        let routed = self.layer.route_call(&routed(call)?);
        let (guarded, operation) = routed.map_err(|error| failure(error, call))?;
        let rules = guarded.route.policy.publish.iter().flat_map(|publish| &publish.rules);
        let completed = rules.filter(|rule| rule.on.contains(&AnnouncedState::Completed));
        let announced = completed.flat_map(|rule| match &rule.statuses[..] {
            [] => (1..=5).map(StatusClass::Class).collect(),
            statuses => statuses.to_vec(),
        });
        Ok(PreparedCall { operation, announced: announced.collect() })
    }

    async fn call(&self, call: SinkCall) -> Result<CallOutcome, CallRouteError> {
        let made = self.layer.call(routed(&call)?, self.forward.clone()).await;
        made.map_err(|error| failure(error, &call))
    }
}

fn routed(call: &SinkCall) -> Result<RoutedCall<'_>, CallRouteError> {
    Ok(RoutedCall {
        caller: InternalCaller::Sink(&call.sink),
        route: &call.request.route,
        key: &call.key,
        hops: call.hops,
        continues: call.continues,
        request: request(call).ok_or(CallRouteError::Malformed)?,
    })
}

fn request(call: &SinkCall) -> Option<Request<Bytes>> {
    let target: Uri = call.request.target.parse().ok()?;
    // A whole address would choose another host.
    let is_path = target.scheme().is_none() && target.path().starts_with('/');
    let body = call.request.body.clone().unwrap_or_default();
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = call.request.method.parse().ok()?;
    *request.uri_mut() = is_path.then_some(target)?;
    if call.request.body.is_some() {
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    request.headers_mut().extend(call.headers.clone());
    Some(request)
}

fn failure(error: UnroutedCall, call: &SinkCall) -> CallRouteError {
    let route = call.request.route.clone();
    match error {
        UnroutedCall::Unknown => CallRouteError::Unknown(route),
        UnroutedCall::Unprotected => CallRouteError::Unprotected(route),
        UnroutedCall::OtherPath => CallRouteError::OtherPath(route),
    }
}
