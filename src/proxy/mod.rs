//! HTTP on both sides: the listener, the connection to the upstream, the fields that may pass, and the refusals.

mod body;
mod busy;
mod dialect;
mod fetch;
mod fields;
mod forward;
mod guard;
mod guarded;
mod inflow;
mod paced;
mod peers;
mod pool;
mod protocol;
mod reject;
mod seen;
mod server;
mod socket;
mod tunnel;
mod wire;

pub use body::{Silence, discard, read_whole};
pub use fetch::{FetchError, fetch, post};
pub use fields::{Peer, TraceParent, from_upstream, to_upstream, trace_parent};
pub use forward::{Forward, Target, Upstream, UpstreamBody, UpstreamError, UpstreamSettings};
pub use guard::{Scan, Scanner};
pub use inflow::RequestBody;
pub use reject::{Rejections, Shape};
pub use server::{Server, ServerLimits, Terms, listen};
