//! A service that can be swapped while it serves. The service that is current when a request
//! arrives answers the request.

use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use tower_service::Service;

/// The swappable service. It is cheap to clone, and a swap applies to all clones. Only for services
/// that are always ready.
pub(super) struct SwappableService<S>(Arc<RwLock<S>>);

impl<S> Clone for SwappableService<S> {
    fn clone(&self) -> SwappableService<S> {
        SwappableService(self.0.clone())
    }
}

impl<S: Clone> SwappableService<S> {
    /// Creates a swappable service that begins with this service.
    pub fn new(first: S) -> SwappableService<S> {
        SwappableService(Arc::new(RwLock::new(first)))
    }

    /// Swaps the service, for new requests.
    pub fn swap(&self, next: S) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    fn get(&self) -> S {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<R, S: Service<R> + Clone> Service<R> for SwappableService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> S::Future {
        self.get().call(request)
    }
}
