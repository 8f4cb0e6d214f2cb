//! What was seen of a request at the connection: from its head to the last byte of its answer, or to whoever left before.

use http::{HeaderMap, Method, Request, StatusCode};

use crate::proxy::fields::{FORWARDED_FOR, Peer};
use crate::proxy::inbound::guarded_bytes::GuardVerdict;
use crate::telemetry::{Arrival, Observers, Trail};

/// Tells a request's trail how it ended, when this is gone.
#[derive(Default)]
pub(in crate::proxy) struct RequestObserver {
    trail: Option<Trail>,
    status: Option<u16>,
    bytes: u64,
}

impl RequestObserver {
    /// A request has come: it carries its trail, if somebody wants to know of it.
    pub fn begin<B>(
        observers: &Observers,
        request: &mut Request<B>,
        peer: &Peer,
        verdict: &GuardVerdict,
    ) -> RequestObserver {
        let trail = observers.begin(|| {
            let client = client_address(peer, request.headers());
            // What stands in the place of what the guard refused is its own; others of the connection came before.
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

    /// The answer begins.
    pub fn answering(&mut self, status: StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// So much of its body was handed out.
    pub fn handed_out(&mut self, bytes: usize) {
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

/// Whose request it is: the connection's other end, or whom a trusted proxy names last, if that is an address.
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
