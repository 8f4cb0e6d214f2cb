//! The client's side: connections within limits, and requests that leave no two readings.

mod announced;
mod byte_guard;
mod connection_state;
mod guarded_bytes;
mod inflow;
mod inspect;
mod listener;
mod peers;
mod protocol;
mod request_observer;
pub(super) mod rules;
mod tls_socket;

pub use byte_guard::{Scan, Scanner};
pub use inspect::{RequestBody, RequestBodyError};
pub use listener::{Server, ServerLimits, Terms, listen};
