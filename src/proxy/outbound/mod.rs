//! The upstream's side: opens and pools connections, and forwards a request at most once.

mod failure;
mod fetch;
mod forward;
mod frame_gate;
mod frame_scan;
mod location;
mod multiplexed;
mod pool;
mod race;
mod upstream;
mod upstream_body;
mod wire;

pub use fetch::{FetchError, fetch, post};
pub use forward::Forward;
pub use upstream::{Http2, Upstream, UpstreamError, UpstreamSettings};
pub use upstream_body::UpstreamBody;
