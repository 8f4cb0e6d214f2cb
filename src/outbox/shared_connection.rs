//! A connection that all attempts at a broker share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// An open connection. The last copy closes it.
pub(super) trait BrokerConnection: Clone + Send + Sync + 'static {
    /// Whether it can be used.
    fn is_open(&self) -> bool;

    /// Whether the other one is a copy of this.
    fn is_same(&self, other: &Self) -> bool;
}

/// A connection, or none yet. `F` is the reason why there is none.
pub(super) struct SharedConnection<C, F> {
    current: Mutex<Option<Opening<C, F>>>,
}

/// A connection from its beginning on. The task outlives the attempt that began it, because a
/// connection can take longer than an attempt.
#[derive(Clone)]
struct Opening<C, F> {
    result: watch::Receiver<Option<Result<C, F>>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl<C, F> SharedConnection<C, F>
where
    C: BrokerConnection,
    F: Clone + Send + Sync + 'static,
{
    /// Returns a connection that the first attempt opens.
    pub(super) fn unopened() -> SharedConnection<C, F> {
        SharedConnection { current: Mutex::new(None) }
    }

    /// Returns the connection. If there is none, `open` opens one, and all attempts that wait for
    /// it share its result. Must be called within a tokio runtime.
    ///
    /// Returns `None` if the runtime ends meanwhile.
    pub(super) async fn get(
        &self,
        open: impl Future<Output = Result<C, F>> + Send + 'static,
    ) -> Option<Result<C, F>> {
        let mut opening = self.opening(open);
        let result = opening.result.wait_for(Option::is_some).await;
        result.ok().and_then(|result| result.clone())
    }

    /// Closes a connection as soon as no attempt uses it. The next attempt opens another one.
    pub(super) fn forget(&self, connection: &C) {
        let mut current = self.lock();
        let is_current = current.as_ref().is_some_and(|opening| {
            matches!(&*opening.result.borrow(), Some(Ok(open)) if open.is_same(connection))
        });
        if is_current {
            *current = None;
        }
    }

    fn opening(&self, open: impl Future<Output = Result<C, F>> + Send + 'static) -> Opening<C, F> {
        let mut current = self.lock();
        if let Some(opening) = current.as_ref().filter(|opening| opening.is_usable()) {
            return opening.clone();
        }
        let (sender, result) = watch::channel(None);
        let task = tokio::spawn(async move {
            sender.send_replace(Some(open.await));
        });
        let opening = Opening { result, _task: Arc::new(AbortOnDropHandle::new(task)) };
        current.insert(opening).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opening<C, F>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: BrokerConnection, F> Opening<C, F> {
    fn is_usable(&self) -> bool {
        match &*self.result.borrow() {
            None => self.result.has_changed().is_ok(),
            Some(Ok(connection)) => connection.is_open(),
            Some(Err(_)) => false,
        }
    }
}
