//! What the stories need: a gateway process, a scripted upstream that counts, Redis, and a plain HTTP client.

pub mod browser;
mod client;
mod fleet;
pub mod frame_origin;
pub mod frames;
mod gateway;
mod nginx;
mod origin;
mod redis;
mod streams;
mod tls;
pub mod tokens;
mod upstream;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use client::{Answer, Connection, Request, dial};
pub use fleet::{Cluster, Watched};
pub use frame_origin::FrameOrigin;
pub use frames::Frames;
pub use gateway::{Gateway, ROUTES, resident_bytes};
pub use nginx::Nginx;
pub use origin::{Manner, Origin};
pub use redis::RedisServer;
pub use streams::{Pending, Streams};
pub use tls::Authority;
pub use upstream::{Seen, Upstream};

/// Longest that a story waits for something that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Ports that tests give away: below those that the system gives to clients, one of whom would now and then take a port
/// between here and its server. A cluster's node also uses the port 10,000 above its own.
const PORTS: std::ops::Range<u16> = 11_000..20_000;

/// A port that nobody listened on a moment ago, and that is given away once.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    // Other test processes begin elsewhere.
    let start = std::process::id().wrapping_mul(997);
    loop {
        let at = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % count;
        let port = PORTS.start + u16::try_from(at).unwrap();
        let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    assert!(within_patience(holds), "waited {PATIENCE:?} for: {what}");
}

/// Waits for a condition; `false` where it never held.
pub fn within_patience(mut holds: impl FnMut() -> bool) -> bool {
    #[allow(clippy::disallowed_methods)]
    let end = Instant::now() + PATIENCE;
    while !holds() {
        // Asked once more after a stop of the whole machine, in which time passes and nothing happens.
        #[allow(clippy::disallowed_methods)]
        let over = Instant::now() >= end;
        if over {
            return holds();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
