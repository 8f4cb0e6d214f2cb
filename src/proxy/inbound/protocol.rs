//! How client connections are served: what the HTTP library allows them, and what a request's head takes of the common
//! buffers.

use http::header::HOST;
use http::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;

use crate::gate::{Hold, Refusal};
use crate::proxy::inbound::byte_guard::FIELD_BYTES;
use crate::proxy::inbound::inflow::text_bytes;
use crate::proxy::inbound::listener::{FIELDS_MAX, ServerLimits};

/// Requests that one HTTP/2 connection may have open: RFC 9113 recommends no fewer than 100.
const STREAMS_MAX: u32 = 128;

/// Requests of an HTTP/2 connection that were cancelled before anybody took them up (CVE-2023-44487).
const RESETS_MAX: usize = 20;

/// Stream errors that an HTTP/2 connection may make; each is answered, and remembered for a while.
const ERRORS_MAX: usize = 256;

/// What HTTP/2 counts for each field of a header list beside its text (RFC 9113, section 6.5.2), which HTTP/1.1 doesn't count.
const LIST_OVERHEAD: usize = 32 * (FIELDS_MAX + 5);

/// What a client may send of one body, and on one HTTP/2 connection, before somebody takes it, in bytes. The smallest stream
/// window that a client may rely on, and as much of a connection as lets other streams go on beside a few that nobody takes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// Bytes of one answer that an HTTP/2 connection holds until its client takes them.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// Least that hyper accepts as a buffer.
const BUFFER_MIN: usize = 8192;

/// What a request costs in memory beside its fields, its bodies and its connection to the upstream, in bytes.
const REQUEST_BYTES: usize = 4 * 1024;

/// What serves a client connection, in either version of HTTP.
pub(in crate::proxy) fn protocol(limits: &ServerLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The guard judges what is too large: the parser must have room for all that it lets through.
    let buffer = limits.header_bytes.max(BUFFER_MIN).saturating_add(1);
    builder.http1().half_close(true).max_headers(FIELDS_MAX).max_buf_size(buffer);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.idle_timeout)
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(ERRORS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(
            u32::try_from(limits.header_bytes + LIST_OVERHEAD).unwrap_or(u32::MAX),
        );
    builder
}

/// Takes room for a request's head, which is held to the limits of HTTP/1.1 in either version of HTTP. A head that is refused
/// is dropped at once: only its `Host` is left, so that the refusal is the same.
pub(in crate::proxy) fn admit_head<B>(
    request: &mut Request<B>,
    bytes_max: usize,
    room: &mut Hold,
) -> Result<(), Refusal> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let (fields, bytes) = (request.headers().len(), target + text_bytes(request.headers()));
    // Twice: as it came, and as it is written to the upstream.
    let cost = REQUEST_BYTES + FIELD_BYTES * fields + 2 * bytes;
    let refused = if fields > FIELDS_MAX || bytes > bytes_max {
        Refusal::HeaderTooLarge { limit: bytes_max }
    } else if !room.grow(cost) {
        Refusal::Overloaded
    } else {
        return Ok(());
    };
    let host = request.headers_mut().remove(HOST);
    *request.headers_mut() = HeaderMap::new();
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    Err(refused)
}
