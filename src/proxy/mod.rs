//! HTTP on both sides: the listener, the connection to the upstream, and the fields that may pass.

mod body;
mod bounded_read;
mod byte_class;
mod fields;
mod inbound;
mod lookalike;
mod outbound;
mod rules;
mod tunnel;

pub use crate::refusal::http::{Rejections, Shape};
pub use body::{Silence, discard, read_whole};
pub use fields::{Peer, TraceParent, from_upstream, takes_trailers, to_upstream, trace_parent};
pub use inbound::{
    RequestBody, RequestBodyError, Scan, Scanner, Server, ServerLimits, ServerTerms, listen,
};
pub use lookalike::Lookalikes;
pub use outbound::{
    FetchError, Forward, Http2, Target, Upstream, UpstreamBody, UpstreamError, UpstreamSettings,
    fetch, post,
};
