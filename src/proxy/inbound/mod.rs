//! The client's side: connections within limits, and requests that all parsers interpret in the
//! same way.

mod byte_guard;
mod connection;
mod connection_state;
mod guarded_bytes;
mod http_builder;
mod inflow;
mod inspect;
mod limits;
mod listener;
mod peers;
mod proxy_header;
mod request_body;
mod request_observer;
mod timed_stream;
mod tls_socket;

pub use byte_guard::{Scan, Scanner};
pub use limits::{ServerLimits, ServerTerms};
pub use listener::{Server, listen};
pub use request_body::{RequestBody, RequestBodyError};

#[cfg(test)]
mod tests;
