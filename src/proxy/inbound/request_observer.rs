//! Observes a request on its connection, from its head to the last byte of its answer, or until the
//! client leaves.

use http::{HeaderMap, Method, Request, StatusCode};

use crate::proxy::fields::{FORWARDED_FOR, Peer};
use crate::proxy::inbound::guarded_bytes::GuardVerdict;
use crate::telemetry::{Arrival, Observers, Trail};

/// Records the status and the size of an answer; dropping it records the request's end in its
/// trail.
#[derive(Default)]
pub(in crate::proxy) struct RequestObserver {
    trail: Option<Trail>,
    status: Option<u16>,
    bytes: u64,
}

impl RequestObserver {
    /// Begins with a request that has arrived. If there are observers, the request gets a trail.
    pub fn begin<B>(
        observers: &Observers,
        request: &mut Request<B>,
        peer: &Peer,
        verdict: &GuardVerdict,
    ) -> RequestObserver {
        let trail = observers.begin(|| {
            let client = client_address(peer, request.headers());
            // The guard's stand-in for a refused request is not a request of the client. The
            // stand-in is the last request of its connection, and no other request has this method.
            let stand_in = *request.method() == Method::TRACE && verdict.refused().is_some();
            if stand_in {
                return Arrival::unreadable(client, request.version());
            }
            Arrival::new(client, request.method(), request.uri(), request.version())
        });
        if let Some(trail) = &trail {
            request.extensions_mut().insert(trail.clone());
        }
        RequestObserver { trail, ..RequestObserver::default() }
    }

    /// Records the response status.
    pub fn record_status(&mut self, status: StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// Counts bytes of the answer's body that were handed out.
    pub fn count_body(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for RequestObserver {
    fn drop(&mut self) {
        if let Some(trail) = &self.trail {
            trail.ended(self.status, self.bytes);
        }
    }
}

/// Returns the client's address. This is the connection's peer. If the peer is a trusted proxy and
/// the last entry of its `X-Forwarded-For` is an address, it is that one.
fn client_address(peer: &Peer, headers: &HeaderMap) -> String {
    let own = || peer.address.to_str().unwrap_or("unknown").to_owned();
    if !peer.trusted {
        return own();
    }
    let last = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .next_back()
        .and_then(|line| line.to_str().ok()?.rsplit(',').next());
    let named = last.and_then(|text| text.trim().parse::<std::net::IpAddr>().ok());
    named.map_or_else(own, |address| address.to_canonical().to_string())
}
