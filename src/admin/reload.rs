//! Sends reload requests of operators to the task that runs the gateway.

use tokio::sync::{mpsc, oneshot};

/// The maximum of queued reload requests. Further requests are refused.
const WAITING_MAX: usize = 4;

/// The reasons why a configuration was refused, one sentence each.
pub type ReloadFaults = Vec<String>;

/// The sender of reload requests. Cheap to clone.
#[derive(Clone)]
pub struct Reloads(mpsc::Sender<ReloadRequest>);

/// A reload request, with the sender of its result.
pub struct ReloadRequest {
    /// The operator who requested it.
    pub operator: String,
    answer: oneshot::Sender<Result<(), ReloadFaults>>,
}

impl Reloads {
    /// Returns the sender, and the receiver of its requests.
    pub fn channel() -> (Reloads, mpsc::Receiver<ReloadRequest>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Reloads(sender), receiver)
    }

    /// Sends a request. Returns the receiver of its result; `None` if the queue is full or closed.
    pub(super) fn request(
        &self,
        operator: String,
    ) -> Option<oneshot::Receiver<Result<(), ReloadFaults>>> {
        let (answer, result) = oneshot::channel();
        self.0.try_send(ReloadRequest { operator, answer }).ok()?;
        Some(result)
    }
}

impl ReloadRequest {
    /// Sends whether the configuration was applied.
    pub fn answer(self, result: Result<(), ReloadFaults>) {
        // This fails if the client has disconnected, which is not an error.
        let _ = self.answer.send(result);
    }
}
