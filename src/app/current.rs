//! A service that is exchanged while it serves: each request is answered by the one that is current when it comes, to its end.

use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use tower_service::Service;

/// The service of the moment. Cheap to clone; all clones are exchanged together. Only for services that are always ready.
pub(super) struct Current<S>(Arc<RwLock<S>>);

impl<S> Clone for Current<S> {
    fn clone(&self) -> Current<S> {
        Current(self.0.clone())
    }
}

impl<S: Clone> Current<S> {
    /// Begins with this one.
    pub fn new(first: S) -> Current<S> {
        Current(Arc::new(RwLock::new(first)))
    }

    /// The requests to come go to this one.
    pub fn replace(&self, next: S) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    fn get(&self) -> S {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<R, S: Service<R> + Clone> Service<R> for Current<S> {
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
