//! Turns for work that keeps a processor busy: decoding bodies, and reading large ones.
//!
//! Danger: a few bytes can cause a second of such work. Without turns the requests of one client
//! could keep all threads busy. The requests of other clients, and the liveness probes of the
//! machine, would have to wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::gate::share::AddressShare;
use crate::refusal::Refusal;

/// Bodies without a content coding up to this length, in bytes, need no turn: reading them takes
/// some milliseconds at most.
const LIGHT_MAX: usize = 64 * 1024;

/// Maximum time that a request waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The turns of all clients. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::gate) struct HeavyWork(Arc<Semaphore>);

/// A turn; it lasts until it is dropped.
pub(in crate::gate) struct HeavyTurn {
    _of_address: Option<OwnedSemaphorePermit>,
    _of_all: OwnedSemaphorePermit,
}

impl HeavyWork {
    /// Creates one turn for every two processors, and at least one. The other processors are left
    /// for other work.
    pub fn new() -> HeavyWork {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        HeavyWork(Arc::new(Semaphore::new((processors / 2).max(1))))
    }

    /// Waits for a turn to read a body, if reading may take long. An address has one turn at a
    /// time.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] if the turn does not come in time.
    pub async fn turn_to_read(
        &self,
        address: Option<&Arc<AddressShare>>,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Option<HeavyTurn>, Refusal> {
        if body.len() <= LIGHT_MAX && !headers.contains_key(CONTENT_ENCODING) {
            return Ok(None);
        }
        let taking = async {
            let of_address = match address {
                Some(address) => Some(address.heavy.clone().acquire_owned().await.ok()?),
                None => None,
            };
            let of_all = self.0.clone().acquire_owned().await.ok()?;
            Some(HeavyTurn { _of_address: of_address, _of_all: of_all })
        };
        match timeout(WAIT_MAX, taking).await {
            Ok(Some(turn)) => Ok(Some(turn)),
            _ => Err(Refusal::Overloaded),
        }
    }
}
