//! The HTTP library's settings for client connections.

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;

use crate::proxy::inbound::limits::ServerLimits;
use crate::proxy::rules::FIELDS_MAX;

/// The maximum of open requests on one HTTP/2 connection. RFC 9113 recommends at least 100.
const STREAMS_MAX: u32 = 128;

/// Requests of an HTTP/2 connection that its client may cancel before they are accepted
/// (CVE-2023-44487).
const RESETS_MAX: usize = 20;

/// Stream errors that an HTTP/2 connection may cause. The library answers each one, and keeps it
/// for a while.
const ERRORS_MAX: usize = 256;

/// Bytes that HTTP/2 adds to a header list's size for its fields (RFC 9113, section 6.5.2).
/// HTTP/1.1 adds none.
const LIST_OVERHEAD: usize = 32 * (FIELDS_MAX + 5);

/// Bytes that a client may send on one HTTP/2 stream, and on one connection, before they are read.
/// The stream window can't be smaller, because clients may use this much before they read the
/// server's settings. The larger connection window lets other streams continue while a few streams
/// are not read.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// Bytes of one answer that an HTTP/2 connection buffers until its client takes them.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// Smallest buffer that hyper accepts, in bytes.
const BUFFER_MIN: usize = 8192;

/// Returns a builder that serves client connections in either version of HTTP.
pub(in crate::proxy) fn http_builder(limits: &ServerLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The guard refuses heads that are too large. The parser needs room for all others.
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
