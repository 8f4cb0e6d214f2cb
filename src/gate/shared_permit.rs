//! Permits of requests in flight that several holders share.

use std::sync::Arc;

use http::Request;
use http::header::UPGRADE;
use prometheus_client::metrics::gauge::Gauge;

use crate::gate::budget::Hold;
use crate::gate::permits::Permit;

/// A permit of a request in flight. It is given back when its last clone is dropped. Clones exist
/// while the upstream works, while the answer streams to the client, and while a tunnel is open. If
/// the request asks for an upgrade, one clone is a request extension.
#[derive(Debug, Clone)]
pub struct SharedPermit(#[allow(dead_code, reason = "held, and never read")] Arc<Held>);

#[derive(Debug)]
struct Held {
    _permit: Permit,
    /// Only for a request that passes through.
    _passing: Option<Passing>,
}

#[derive(Debug)]
struct Passing {
    _hold: Hold,
    gauge: Gauge,
}

impl SharedPermit {
    /// Creates the permit of a protected request.
    pub(super) fn new(permit: Permit) -> SharedPermit {
        SharedPermit(Arc::new(Held { _permit: permit, _passing: None }))
    }

    /// Creates the permit of a request that passes through. The permit also keeps `hold`, and
    /// counts in `gauge`.
    pub(super) fn of_passing(permit: Permit, hold: Hold, gauge: Gauge) -> SharedPermit {
        gauge.inc();
        let passing = Passing { _hold: hold, gauge };
        SharedPermit(Arc::new(Held { _permit: permit, _passing: Some(passing) }))
    }

    /// If a request asks for an upgrade, adds the permit to its extensions. So the service that
    /// opens the tunnel can keep the permit.
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
