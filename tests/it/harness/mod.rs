//! What the stories need: a gateway process, a scripted upstream that counts, Redis, and a plain HTTP client.

mod client;
mod fleet;
pub mod frames;
mod gateway;
mod nginx;
mod origin;
mod redis;
mod streams;
mod tls;
pub mod tokens;
mod upstream;

use std::time::{Duration, Instant};

pub use client::{Answer, Connection, Request};
pub use fleet::{Cluster, Watched};
pub use frames::Frames;
pub use gateway::{Gateway, ROUTES};
pub use nginx::Nginx;
pub use origin::{Manner, Origin};
pub use redis::RedisServer;
pub use streams::{Pending, Streams};
pub use tls::Authority;
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
    while !holds() {
        // Asked once more after a stop of the whole machine, in which time passes and nothing happens.
        #[allow(clippy::disallowed_methods)]
        let over = Instant::now() >= end;
        assert!(!over || holds(), "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
