//! Admits requests that pass through without protection. Each one needs a permit for a request in
//! flight, and memory from the common budget.
//!
//! Danger: the gate stores nothing of these requests, but each one takes a connection to the
//! upstream, and buffers on both sides of the gateway. Without a limit the slow requests of one
//! client could take the memory and the file descriptors that payments need.

use std::sync::Arc;

use crate::gate::budget::Hold;
use crate::gate::share::AddressShare;
use crate::gate::shared_permit::SharedPermit;
use crate::gate::state::Gate;
use crate::refusal::Refusal;

/// Memory for one direction of a streamed body: the bytes that are read from one side and not yet
/// written to the other. This is enough for two reads and two pieces of the proxy.
const STREAM_BYTES: usize = 32 * 1024;

impl Gate {
    /// Returns an empty hold for the copy of a body that passes through. The hold can grow up to
    /// the part of the budget that is for requests without protection.
    pub(crate) fn passing_room(&self, address: Option<&Arc<AddressShare>>) -> Hold {
        self.budget.of_address(address).of_passing().hold()
    }

    /// Takes a permit and memory for a request that passes through. `uploads` is whether the
    /// request has a body that streams.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] if the client's address, or all clients together, have reached a
    /// limit.
    pub(crate) fn admit_passing(
        &self,
        address: Option<&Arc<AddressShare>>,
        uploads: bool,
    ) -> Result<SharedPermit, Refusal> {
        let permit = self.in_flight.passing(address).ok_or(Refusal::Overloaded)?;
        let mut hold = self.passing_room(address);
        if !hold.grow(if uploads { 2 * STREAM_BYTES } else { STREAM_BYTES }) {
            return Err(Refusal::Overloaded);
        }
        Ok(SharedPermit::of_passing(permit, hold, self.meter.in_flight.clone()))
    }
}
