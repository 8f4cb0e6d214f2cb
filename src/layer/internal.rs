//! Calls of the gateway's own components, on the routes of a layer.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};

use super::OncewardLayer;
use crate::engine::{KeySource, Mode};
use crate::forwarding::UpstreamIndex;
use crate::gate::{
    CallOutcome, InternalCaller, InternalOperation, ProtectedRoute, UpstreamService,
};
use crate::key::Slot;

/// A call of one of the gateway's own components.
#[derive(Debug, Clone)]
pub struct RoutedCall<'c> {
    /// The calling component.
    pub caller: InternalCaller<'c>,
    /// The name of the route.
    pub route: &'c str,
    /// The key, in plain text.
    pub key: &'c str,
    /// Number of events that led to the call.
    pub hops: u8,
    /// Whether the operation began earlier. Such a call never begins the operation.
    pub continues: bool,
    /// The request.
    pub request: Request<Bytes>,
}

/// Why a call has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnroutedCall {
    /// No route has this name.
    #[error("no route has this name")]
    Unknown,
    /// The route does not enforce, or has no header field for the key.
    #[error("the route does not enforce, or has no header field for the key")]
    Unprotected,
    /// Another route covers the request, or none does.
    #[error("the route does not cover the request")]
    OtherPath,
}

impl OncewardLayer {
    /// Returns the route of a call, and the operation.
    ///
    /// # Errors
    /// See [`UnroutedCall`].
    pub fn route_call(
        &self,
        call: &RoutedCall<'_>,
    ) -> Result<(Arc<ProtectedRoute>, Slot), UnroutedCall> {
        let (method, path) = (call.request.method(), call.request.uri().path());
        let guarded = self.route_of_call(call.route, method, path)?;
        let slot = self.0.gate.slot_of_call(&call.operation(&guarded));
        Ok((guarded, slot))
    }

    /// Makes a call. `service` is the service inside the layer.
    ///
    /// # Errors
    /// See [`UnroutedCall`]. Nothing was sent.
    pub async fn call<S, B>(
        &self,
        mut call: RoutedCall<'_>,
        service: S,
    ) -> Result<CallOutcome, UnroutedCall>
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        let (guarded, _) = self.route_call(&call)?;
        let mut request = std::mem::take(&mut call.request);
        request.extensions_mut().insert(UpstreamIndex(guarded.route.upstream));
        Ok(self.0.gate.call(call.operation(&guarded), request, service).await)
    }

    /// Returns the route with a name.
    pub fn protected_route(&self, name: &str) -> Option<Arc<ProtectedRoute>> {
        let is_named = |guarded: &&Arc<ProtectedRoute>| *guarded.route.policy.route == *name;
        self.0.guarded.iter().find(is_named).cloned()
    }

    /// Calls an operation with a route that is in no table of routes. `service` is the service
    /// inside the layer.
    pub async fn call_operation<S, B>(
        &self,
        operation: InternalOperation<'_>,
        mut request: Request<Bytes>,
        service: S,
    ) -> CallOutcome
    where
        S: UpstreamService<B>,
        B: Send + 'static,
    {
        request.extensions_mut().insert(UpstreamIndex(operation.guarded.route.upstream));
        self.0.gate.call(operation, request, service).await
    }

    fn route_of_call(
        &self,
        name: &str,
        method: &Method,
        path: &str,
    ) -> Result<Arc<ProtectedRoute>, UnroutedCall> {
        let named = self.protected_route(name).ok_or(UnroutedCall::Unknown)?;
        let policy = &named.route.policy;
        let has_field = matches!(&policy.key.source, KeySource::Sent { header: Some(_), .. });
        if policy.mode != Mode::Enforce || !has_field {
            return Err(UnroutedCall::Unprotected);
        }
        let position = self.0.routes.position(method, path).ok().flatten();
        let covering = position.and_then(|at| self.0.guarded.get(at));
        let covering = covering.filter(|guarded| Arc::ptr_eq(guarded, &named));
        covering.cloned().ok_or(UnroutedCall::OtherPath)
    }
}

impl<'c> RoutedCall<'c> {
    fn operation<'o>(&'o self, guarded: &'o Arc<ProtectedRoute>) -> InternalOperation<'o>
    where
        'c: 'o,
    {
        InternalOperation {
            guarded,
            caller: self.caller,
            key: self.key,
            hops: self.hops,
            continues: self.continues,
            only_asks: false,
        }
    }
}
