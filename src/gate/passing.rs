//! Requests that pass through without protection: their permits among the requests in flight, and their
//! room in the common buffers.
//!
//! Danger: the gate stores nothing of them, but each takes a connection to the upstream and buffers on
//! both sides of the gateway. Without a bound one client's slow requests take the memory and the file
//! descriptors that payments need.

use std::sync::Arc;

use http::Request;
use http::header::UPGRADE;
use prometheus_client::metrics::gauge::Gauge;

use crate::gate::budget::Hold;
use crate::gate::permits::Place;
use crate::gate::share::AddressShare;
use crate::gate::state::Gate;
use crate::refusal::Refusal;

/// Room for the buffered bytes of a body that streams through, in one direction: read from one side and
/// not yet written to the other. Two reads and two pieces of the proxy.
const STREAM_BYTES: usize = 32 * 1024;

/// A permit of a request in flight, held for as long as a clone of it exists: while the upstream works,
/// while its answer streams to the client, and while a tunnel is open. A request extension where the
/// request asks for an upgrade.
#[derive(Debug, Clone)]
pub struct SharedPermit(#[allow(dead_code, reason = "held, and never read")] Arc<Held>);

#[derive(Debug)]
struct Held {
    _place: Place,
    /// Only of a request that passes through.
    _passing: Option<Passing>,
}

#[derive(Debug)]
struct Passing {
    _hold: Hold,
    gauge: Gauge,
}

impl SharedPermit {
    pub(super) fn new(place: Place) -> SharedPermit {
        SharedPermit(Arc::new(Held { _place: place, _passing: None }))
    }

    /// Adds the permit to a request that asks for an upgrade, so that the service that opens the tunnel
    /// keeps it.
    pub(crate) fn accompany<B>(&self, request: &mut Request<B>) {
        if request.headers().contains_key(UPGRADE) {
            request.extensions_mut().insert(self.clone());
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Gate {
    /// Returns an empty hold of the room that requests which pass through may take, for copies of their
    /// bodies.
    pub(crate) fn passing_room(&self, address: Option<&Arc<AddressShare>>) -> Hold {
        self.budget.of_address(address).of_passing().hold()
    }

    /// Takes a permit and room for a request that passes through. `uploads`: whether the request has a
    /// body that streams.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] where the client's address, or all clients together, have as many as
    /// they may.
    pub(crate) fn admit_passing(
        &self,
        address: Option<&Arc<AddressShare>>,
        uploads: bool,
    ) -> Result<SharedPermit, Refusal> {
        let place = self.in_flight.passing(address).ok_or(Refusal::Overloaded)?;
        let mut hold = self.passing_room(address);
        if !hold.grow(if uploads { 2 * STREAM_BYTES } else { STREAM_BYTES }) {
            return Err(Refusal::Overloaded);
        }
        let gauge = self.meter.in_flight.clone();
        gauge.inc();
        let passing = Passing { _hold: hold, gauge };
        Ok(SharedPermit(Arc::new(Held { _place: place, _passing: Some(passing) })))
    }
}
