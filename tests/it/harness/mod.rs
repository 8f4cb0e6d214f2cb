//! What the stories need: a gateway process, a scripted upstream that counts, Redis, and a plain HTTP client.

mod client;
mod gateway;
pub mod http2;
mod nginx;
mod redis;
mod upstream;

use std::time::{Duration, Instant};

pub use client::{Answer, Connection, Request};
pub use gateway::{Gateway, ROUTES};
pub use http2::Http2;
pub use nginx::Nginx;
pub use redis::RedisServer;
pub use upstream::{Seen, Upstream};

/// Longest that a story waits for something that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A port that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    #[allow(clippy::disallowed_methods)]
    let end = Instant::now() + PATIENCE;
    #[allow(clippy::disallowed_methods)]
    while Instant::now() < end {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited {PATIENCE:?} for: {what}");
}
