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
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_peer: usize,
    /// A request's header block, in bytes.
    pub header_bytes: usize,
    /// From a request's first byte to the end of its header block.
    pub header_timeout: Duration,
    /// How long a connection may be silent between requests.
    pub idle_timeout: Duration,
    /// The memory budget. A request counts in it from its head to the last byte of its answer.
    pub budget: Budget,
    /// Proxies in front of the gateway, trusted to name their clients. Each carries many clients,
    /// so the limit for one peer does not bind them.
    pub trusted: Arc<[IpNet]>,
    /// Whether those proxies announce the client of each connection by the PROXY protocol.
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

/// The limits of new connections, and the form of their refusals. They can be replaced while the
/// listener serves; a connection keeps those that it began with. Cheap to clone.
#[derive(Clone)]
pub struct ServerTerms(Arc<RwLock<(ServerLimits, RefusalRenderer)>>);

impl ServerTerms {
    /// Creates the first terms. A later replacement does not change the number of connections at
    /// once.
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
