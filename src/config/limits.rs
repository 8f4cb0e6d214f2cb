//! `[limits]`: what is bounded, so that neither a client nor an upstream can exhaust the gateway.

use std::time::Duration;

/// All limits. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest body of a protected request; a larger one gets 413.
    pub request_body: usize,
    /// Largest response that is stored; a larger one passes through and is not replayable.
    pub response_body: usize,
    /// All buffers together.
    pub buffered_bytes: usize,
    /// Client connections.
    pub connections: usize,
    /// Client connections from one address.
    pub connections_per_peer: usize,
    /// Requests being worked on.
    pub in_flight: usize,
    /// Duplicates being held.
    pub waiters: usize,
    /// Duplicates being held for one key.
    pub waiters_per_key: usize,
    /// Largest header block, in bytes; a larger one gets 431.
    pub header_bytes: usize,
    /// How long a client may take to send its header block.
    pub header_timeout: Duration,
    /// How long a client may be silent while it sends a body.
    pub body_timeout: Duration,
    /// How long a client connection stays open unused.
    pub idle_timeout: Duration,
}
