//! Parts of HTTP messages that the layer and the proxy share: bodies within limits, and the fields
//! that both of them read.

mod body;
mod fields;

pub use body::{SilenceLimit, discard, read_whole};
pub use fields::{TRACEPARENT, takes_trailers};
