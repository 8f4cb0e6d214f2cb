//! Turns for work that keeps a processor busy: decoding bodies, and reading large ones.
//!
//! Danger: a few bytes can ask for a second of it. Without turns one client's requests keep all threads busy, and everybody's
//! requests and the probes of the machine's supervisor wait behind them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::gate::share::AddressShare;
use crate::gate::{Gate, Refusal};

/// Bodies without a content coding up to this length, in bytes, are read without a turn: that takes some milliseconds at most.
const LIGHT_MAX: usize = 64 * 1024;

/// How long a request waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A turn; it lasts until it is dropped.
pub(in crate::gate) struct Turn {
    _of_address: Option<OwnedSemaphorePermit>,
    _of_all: OwnedSemaphorePermit,
}

/// The turns of all clients: half of the processors, so that the others are there for all else.
pub(in crate::gate) fn turns() -> Arc<Semaphore> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new((processors / 2).max(1)))
}

impl Gate {
    /// Waits for a turn to read a body, where that may take long; one address has one at a time.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`], where the turn does not come in time.
    pub(in crate::gate) async fn turn_to_read(
        &self,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Option<Turn>, Refusal> {
        if body.len() <= LIGHT_MAX && !parts.headers.contains_key(CONTENT_ENCODING) {
            return Ok(None);
        }
        let taking = async {
            let of_address = match AddressShare::of(&parts.extensions) {
                Some(address) => Some(address.heavy.clone().acquire_owned().await.ok()?),
                None => None,
            };
            Some(Turn {
                _of_address: of_address,
                _of_all: self.heavy.clone().acquire_owned().await.ok()?,
            })
        };
        match timeout(WAIT_MAX, taking).await {
            Ok(Some(turn)) => Ok(Some(turn)),
            _ => Err(Refusal::Overloaded),
        }
    }
}
