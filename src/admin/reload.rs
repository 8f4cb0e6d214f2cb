//! Reload requests of operators, on their way to the task that runs the gateway.

use tokio::sync::{mpsc, oneshot};

/// Most queued reload requests. More at once are a mistake, and are refused.
const WAITING_MAX: usize = 4;

/// Why a configuration was refused, one sentence each.
pub type ReloadFaults = Vec<String>;

/// The sender of reload requests. Cheap to clone.
#[derive(Clone)]
pub struct Reloads(mpsc::Sender<ReloadRequest>);

/// A reload request, with the way back for its result.
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
        // The client may have left.
        let _ = self.answer.send(result);
    }
}
