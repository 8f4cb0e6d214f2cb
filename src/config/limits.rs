//! `[limits]`: limits that prevent clients and upstreams from exhausting the gateway.

use std::time::Duration;

use super::read::Table;

/// All limits. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest body of a protected request. A larger one gets 413.
    pub request_body: usize,
    /// Largest response that is stored. A larger one passes through and can't be replayed.
    pub response_body: usize,
    /// All buffers together, in bytes.
    pub buffered_bytes: usize,
    /// The maximum of client connections.
    pub connections: usize,
    /// The maximum of client connections from one address.
    pub connections_per_peer: usize,
    /// The maximum of active requests.
    pub in_flight: usize,
    /// The maximum of held duplicates.
    pub waiters: usize,
    /// The maximum of held duplicates of one key.
    pub waiters_per_key: usize,
    /// How many new operations one scope of a route may begin at this gateway within the route's
    /// retention; 0: no limit.
    pub records_per_scope: usize,
    /// The maximum of sagas that run at this gateway. A further one gets 503.
    pub sagas: usize,
    /// Largest header block, in bytes. A larger one gets 431.
    pub header_bytes: usize,
    /// How long a client may take to send its header block.
    pub header_timeout: Duration,
    /// How long a client may take to send the whole body of a protected request.
    pub body_timeout: Duration,
    /// How long an unused client connection stays open.
    pub idle_timeout: Duration,
}

/// Smallest value of the header block limit, because the buffer of the HTTP/1.1 parser is never
/// smaller.
const HEADER_BYTES_MIN: u64 = 8 * 1024;
/// Largest number of connections, requests or waiters. It is more than a machine has ports.
const COUNT_MAX: u64 = 10_000_000;

impl Limits {
    /// Reads `[limits]`.
    pub(super) fn read(table: Table<'_>) -> Option<Limits> {
        let size = |name, min| usize::try_from(table.get(name)?.size(min)?).ok();
        let count = |name, min| usize::try_from(table.get(name)?.number(min, COUNT_MAX)?).ok();
        let duration = |name| table.get(name)?.duration();

        let (request_body, response_body) = (size("request_body", 1), size("response_body", 1));
        let buffered_bytes = size("buffered_bytes", 1);
        let (connections, connections_per_peer) =
            (count("connections", 1), count("connections_per_peer", 1));
        let in_flight = count("in_flight", 1);
        let (waiters, waiters_per_key) = (count("waiters", 0), count("waiters_per_key", 0));
        let (records_per_scope, sagas) = (count("records_per_scope", 0), count("sagas", 1));
        let header_bytes = size("header_bytes", HEADER_BYTES_MIN);
        let (header_timeout, body_timeout) = (duration("header_timeout"), duration("body_timeout"));
        let idle_timeout = duration("idle_timeout");

        if let (Some(request), Some(response), Some(all)) =
            (request_body, response_body, buffered_bytes)
            && request.saturating_add(response) > all
        {
            table.report.note(
                &table.span_of("buffered_bytes"),
                "no room for one request_body and one response_body",
            );
        }
        table.finish();
        Some(Limits {
            request_body: request_body?,
            response_body: response_body?,
            buffered_bytes: buffered_bytes?,
            connections: connections?,
            connections_per_peer: connections_per_peer?,
            in_flight: in_flight?,
            waiters: waiters?,
            waiters_per_key: waiters_per_key?,
            records_per_scope: records_per_scope?,
            sagas: sagas?,
            header_bytes: header_bytes?,
            header_timeout: header_timeout?,
            body_timeout: body_timeout?,
            idle_timeout: idle_timeout?,
        })
    }
}
