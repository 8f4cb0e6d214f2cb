//! The limits of client connections.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ipnet::IpNet;

use crate::gate::Budget;
use crate::refusal::RefusalRenderer;

/// The limits of a listener.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// The maximum of open connections.
    pub connections: usize,
    /// The maximum of open connections from one address.
    pub connections_per_peer: usize,
    /// The maximum size of a request's header block, in bytes.
    pub header_bytes: usize,
    /// The longest time from a request's first byte to the end of its header block.
    pub header_timeout: Duration,
    /// How long a connection may be silent between requests.
    pub idle_timeout: Duration,
    /// The memory budget. A request counts in it from its head to the last byte of its answer.
    pub budget: Budget,
    /// Proxies in front of the gateway that are trusted to name their clients. A proxy forwards
    /// many clients, so `connections_per_peer` does not apply to it.
    pub trusted: Arc<[IpNet]>,
    /// Whether the trusted proxies announce the client of each connection by the PROXY protocol.
    pub proxy_protocol: bool,
}

impl ServerLimits {
    /// Returns whether an address is a trusted proxy.
    pub(in crate::proxy) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|proxies| proxies.contains(&address))
    }

    /// Returns how many connections an address may have.
    pub(in crate::proxy) fn connections_of(&self, address: IpAddr) -> usize {
        if self.trusts(address) { usize::MAX } else { self.connections_per_peer }
    }
}

/// The terms of new connections: their limits, and the form of their refusals. The terms can be
/// replaced while the listener serves. A connection keeps the terms that it began with. Cheap to
/// clone.
#[derive(Clone)]
pub struct ServerTerms(Arc<RwLock<(ServerLimits, RefusalRenderer)>>);

impl ServerTerms {
    /// Creates the first terms. A replacement can't change the maximum of open connections.
    pub fn new(limits: ServerLimits, renderer: RefusalRenderer) -> ServerTerms {
        ServerTerms(Arc::new(RwLock::new((limits, renderer))))
    }

    /// Replaces the terms of all later connections.
    pub fn replace(&self, limits: ServerLimits, renderer: RefusalRenderer) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (limits, renderer);
    }

    /// Returns the terms of the next connection.
    pub(in crate::proxy) fn current(&self) -> (ServerLimits, RefusalRenderer) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
