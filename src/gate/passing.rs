//! Requests that pass through without protection: their places among the requests in flight, and their room in the
//! common buffers.
//!
//! Danger: nothing of them is kept, but each takes a connection to the upstream and buffers on both sides of the gateway.
//! Without a bound one client's slow requests take the memory and the file descriptors that payments need.

use std::sync::Arc;

use http::header::UPGRADE;
use http::{Extensions, Request};
use prometheus_client::metrics::gauge::Gauge;

use super::budget::Hold;
use super::share::AddressShare;
use super::{Gate, Refusal};
use crate::gate::permits::Permit;

/// Room for what is buffered of a body that streams through, in one direction: what was read from one side and is not
/// yet written to the other. Two reads and two pieces of the proxy.
const STREAM_BYTES: usize = 32 * 1024;

/// A place among the requests in flight, held for as long as a clone of it exists: while the upstream works, while its
/// answer streams to the client, and while a tunnel is open. A request extension where the request asks for an upgrade.
#[derive(Debug, Clone)]
pub struct ForwardPermit(#[allow(dead_code, reason = "held, and never looked at")] Arc<Held>);

#[derive(Debug)]
struct Held {
    _permit: Permit,
    /// Of a request that passes through.
    _passing: Option<Passing>,
}

#[derive(Debug)]
struct Passing {
    _hold: Hold,
    gauge: Gauge,
}

impl ForwardPermit {
    pub(super) fn new(permit: Permit) -> ForwardPermit {
        ForwardPermit(Arc::new(Held { _permit: permit, _passing: None }))
    }

    /// Goes with a request that asks for an upgrade, so that whoever opens the tunnel keeps the place.
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
    /// Returns an empty hold of the room that requests which pass through may take, for copies of their bodies.
    pub(crate) fn passing_room(&self, extensions: &Extensions) -> Hold {
        self.budget.of_address(AddressShare::of(extensions)).of_passing().hold()
    }

    /// Takes a place and room for a request that passes through. `uploads`: whether it has a body that streams.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] where the client's address, or all clients together, have as many as they may.
    pub(crate) fn admit_passing(
        &self,
        extensions: &Extensions,
        uploads: bool,
    ) -> Result<ForwardPermit, Refusal> {
        let address = AddressShare::of(extensions);
        let permit = self.in_flight.passing(address).ok_or(Refusal::Overloaded)?;
        let mut hold = self.budget.of_address(address).of_passing().hold();
        if !hold.grow(if uploads { 2 * STREAM_BYTES } else { STREAM_BYTES }) {
            return Err(Refusal::Overloaded);
        }
        let gauge = self.meter.in_flight.clone();
        gauge.inc();
        Ok(ForwardPermit(Arc::new(Held {
            _permit: permit,
            _passing: Some(Passing { _hold: hold, gauge }),
        })))
    }
}
