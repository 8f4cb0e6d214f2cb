//! HTTP on both sides: the listener, the connections to the upstream, and the header fields that
//! are forwarded.

mod bounded_read;
mod byte_class;
mod fields;
mod inbound;
mod outbound;
mod rules;
mod tunnel;

pub use fields::{Peer, from_upstream, to_upstream};
pub use inbound::{
    RequestBody, RequestBodyError, Scan, Scanner, Server, ServerLimits, ServerTerms, listen,
};
pub use outbound::{
    FetchError, Forward, Http2, Upstream, UpstreamBody, UpstreamError, UpstreamSettings, fetch,
    post,
};
