//! The upstream's side: connections, and forwarding a request at most once.

mod failure;
mod fetch;
mod forward;
mod frame_gate;
mod location;
mod multiplexed;
mod pool;
mod race;
mod upstream_body;
mod wire;

pub use fetch::{FetchError, fetch, post};
pub use forward::{Forward, Http2, Upstream, UpstreamError, UpstreamSettings};
pub use upstream_body::UpstreamBody;
