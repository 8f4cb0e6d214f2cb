//! A handmade solution: a lock with a time to live, the upstream, the answer under a second key; no
//! fence, and events that are sent once, beside the store. The checkers must find its violations.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::request;
use crate::deliveries::SINKS;
use crate::harness::{Answer, Connection, RedisServer, Request};
use crate::upstream::IncomingRequest;

/// A proxy that stores answers by key, without a fence.
pub struct Naive {
    pub port: u16,
    dead: Arc<AtomicBool>,
}

/// The time to live of a lock.
pub const LOCK_MS: u64 = 300;

impl Naive {
    pub fn start(redis: &RedisServer, upstream: u16) -> Naive {
        Naive::publishing(redis, upstream, None)
    }

    /// Starts a proxy that sends an event of each answer to a receiver, once.
    pub fn publishing(redis: &RedisServer, upstream: u16, receiver: Option<u16>) -> Naive {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (url, dead) = (redis.url(), Arc::new(AtomicBool::new(false)));
        let killed = dead.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if killed.load(Ordering::SeqCst) {
                    return;
                }
                let (url, killed) = (url.clone(), killed.clone());
                std::thread::spawn(move || serve(stream, &url, upstream, receiver, &killed));
            }
        });
        Naive { port, dead }
    }

    /// Stops it at once, without finishing its current work.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Drop for Naive {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Serves the single request of a connection.
fn serve(
    stream: TcpStream,
    redis: &str,
    upstream: u16,
    receiver: Option<u16>,
    dead: &AtomicBool,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let key = IncomingRequest::read(&mut reader)?.key?;
    let mut redis = redis::Client::open(redis).ok()?.get_connection().ok()?;
    let (lock, kept) = (format!("lock:{key}"), format!("answer:{key}"));
    if let Some(answer) = redis::cmd("GET").arg(&kept).query::<Option<Vec<u8>>>(&mut redis).ok()? {
        return reader.get_mut().write_all(&answer).ok();
    }
    let locked = redis::cmd("SET")
        .arg(&lock)
        .arg("")
        .arg("NX")
        .arg("PX")
        .arg(LOCK_MS)
        .query::<Option<String>>(&mut redis)
        .ok()?;
    if locked.is_none() {
        let body = r#"{"type":"urn:naive:in-flight","retryable":true}"#;
        let head = "HTTP/1.1 409 X\r\nContent-Type: application/problem+json\r\n";
        return write!(reader.get_mut(), "{head}Content-Length: {}\r\n\r\n{body}", body.len()).ok();
    }
    let answer =
        Connection::try_open(upstream, Duration::from_secs(10)).and_then(|mut upstream| {
            upstream.try_write(&request(&key).bytes());
            upstream.try_read("POST")
        });
    if dead.load(Ordering::SeqCst) {
        return None;
    }
    let Some(answer) = answer.filter(|answer| answer.status < 429) else {
        // The request failed, so the next one may try.
        redis::cmd("DEL").arg(&lock).exec(&mut redis).ok()?;
        return write!(reader.get_mut(), "HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n").ok();
    };
    let fields: String =
        answer.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let bytes =
        [format!("HTTP/1.1 {} X\r\n{fields}\r\n", answer.status).as_bytes(), &answer.body].concat();
    redis::cmd("SET").arg(&kept).arg(&bytes).exec(&mut redis).ok()?;
    if let Some(receiver) = receiver {
        publish(receiver, &key, &answer);
    }
    reader.get_mut().write_all(&bytes).ok()
}

/// Sends an event to each sink, whatever becomes of it.
fn publish(receiver: u16, key: &str, answer: &Answer) {
    let payment = answer.json()["payment"].clone();
    let (status, id) = (answer.status, format!("ev_{payment}"));
    let event = serde_json::json!({
        "id": id,
        "subject": format!("op_{key}"),
        "sequence": "1",
        "data": { "state": "completed", "status": status, "order": key, "payment": payment },
    });
    for (sink, _) in SINKS {
        let hook = Request::new("POST", &format!("/{sink}")).field("webhook-id", &id);
        let hook = hook.json(&event.to_string());
        if let Some(mut connection) = Connection::try_open(receiver, Duration::from_secs(1)) {
            connection.try_write(&hook.bytes());
            let _ = connection.try_read("POST");
        }
    }
}
