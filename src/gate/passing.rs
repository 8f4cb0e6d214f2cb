//! Admits requests that pass through without protection: they need a permit among the requests in
//! flight, and room in the common buffers.
//!
//! Danger: the gate stores nothing of them, but each takes a connection to the upstream and buffers
//! on both sides of the gateway. Without a bound one client's slow requests take the memory and the
//! file descriptors that payments need.

use std::sync::Arc;

use crate::gate::budget::Hold;
use crate::gate::share::AddressShare;
use crate::gate::shared_permit::SharedPermit;
use crate::gate::state::Gate;
use crate::refusal::Refusal;

/// Room for the buffered bytes of a body that streams through, in one direction: read from one side
/// and not yet written to the other. Two reads and two pieces of the proxy.
const STREAM_BYTES: usize = 32 * 1024;

impl Gate {
    /// Returns an empty hold of the room that requests which pass through may take, for copies of
    /// their bodies.
    pub(crate) fn passing_room(&self, address: Option<&Arc<AddressShare>>) -> Hold {
        self.budget.of_address(address).of_passing().hold()
    }

    /// Takes a permit and room for a request that passes through. `uploads`: whether the request
    /// has a body that streams.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] where the client's address, or all clients together, have as many as
    /// they may.
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
