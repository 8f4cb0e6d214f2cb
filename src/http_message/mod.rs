//! Parts of HTTP messages that the gate, the layer and the proxy share: bodies within limits, and
//! header fields.

mod body;
mod fields;

pub use body::{SilenceLimit, discard, read_whole};
pub use fields::{TRACEPARENT, takes_trailers};
