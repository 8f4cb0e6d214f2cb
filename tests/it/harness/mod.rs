//! Shared tools of the stories: gateway processes, scripted upstreams that count, Redis, and
//! clients.

pub mod browser;
mod client;
pub mod documents;
mod example;
mod fleet;
pub mod frame_origin;
pub mod frames;
mod gateway;
mod hooks;
mod nats;
mod nats_users;
mod nginx;
mod origin;
mod redis;
mod streams;
mod tls;
pub mod tokens;
pub mod upstream;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use client::{Answer, Connection, Request, dial};
pub use documents::Documents;
pub use example::run_example;
pub use fleet::{Cluster, Watched};
pub use frame_origin::FrameOrigin;
pub use frames::Frames;
pub use gateway::{Gateway, ROUTES, resident_bytes};
pub use hooks::{Hook, Hooks};
pub use nats::NatsServer;
pub use nats_users::NatsUser;
pub use nginx::Nginx;
pub use origin::{Manner, Origin};
pub use redis::RedisServer;
pub use streams::{Pending, Streams};
pub use tls::Authority;
pub use upstream::{ReceivedRequest, Upstream};

/// The longest time that a story waits for a condition.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Ports for tests. They are below the system's ephemeral ports: a client could otherwise take a
/// port between its choice here and its server's start. A cluster's node also uses the port 10,000
/// higher.
const PORTS: std::ops::Range<u16> = 11_000..20_000;

/// Returns a port without a listener; each port is returned once.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    // Other test processes begin with another port.
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

/// Waits until a condition holds; fails the test if it never does.
#[track_caller]
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    assert!(within_patience(holds), "waited {PATIENCE:?} for: {what}");
}

/// Waits until each thread of a process is stopped, because a signal takes effect later.
fn until_stopped(process: u32) {
    let is_stopped = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
    };
    until("the process to stop", || {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        tasks.flatten().all(is_stopped)
    });
}

/// Waits for a condition; returns `false` if it never held.
pub fn within_patience(mut holds: impl FnMut() -> bool) -> bool {
    #[allow(clippy::disallowed_methods)]
    let end = Instant::now() + PATIENCE;
    while !holds() {
        // Checked once more, since the whole machine may have been suspended.
        #[allow(clippy::disallowed_methods)]
        let over = Instant::now() >= end;
        if over {
            return holds();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
