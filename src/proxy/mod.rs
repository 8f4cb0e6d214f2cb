//! HTTP on both sides: the listener, the connection to the upstream, the fields that may pass, and the refusals.

mod body;
mod busy;
mod dialect;
mod fetch;
mod fields;
mod forward;
mod frame_gate;
mod guard;
mod guarded;
mod inflow;
mod inspect;
mod lookalike;
mod multiplexed;
mod paced;
mod peers;
mod pool;
mod protocol;
mod reject;
mod rules;
mod seen;
mod server;
mod socket;
mod tunnel;
mod wire;

pub use body::{Silence, discard, read_whole};
pub use fetch::{FetchError, fetch, post};
pub use fields::{Peer, TraceParent, from_upstream, takes_trailers, to_upstream, trace_parent};
pub use forward::{Forward, Target, Upstream, UpstreamBody, UpstreamError, UpstreamSettings};
pub use guard::{Scan, Scanner};
pub use inspect::{RequestBody, RequestBodyError};
pub use lookalike::Lookalikes;
pub use reject::{Rejections, Shape};
pub use server::{Server, ServerLimits, Terms, listen};
