//! A TCP proxy that cuts connections at any byte, and partitions its two sides.
//!
//! It is between one gateway and one server (Redis, a sentinel, the upstream). It also reads the
//! bytes. It records the keys that a gateway wrote towards the upstream, even if they did not
//! arrive. It replaces servers' addresses by those of their proxies, so that a gateway does not
//! bypass them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::now;

/// The connection between the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes pass.
    Open,
    /// Bytes wait, and arrive late.
    Held,
    /// Bytes are lost. A connection that lost some is reset at the end of this mode.
    Lost,
    /// New connections are refused, and open ones are closed.
    Refused,
}

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    There,
    Back,
}

/// A connection to be cut when bytes next go in this direction.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub way: Way,
    /// The number of those bytes that still arrive, modulo their count: never all.
    pub keep: usize,
    /// Whether it is reset rather than closed.
    pub reset: bool,
}

/// The reason why a copy loop ends.
enum End {
    Closed,
    Reset,
}

/// Counts of faults on connections.
#[derive(Default)]
pub struct Counts {
    /// Connections that were cut while bytes passed.
    pub cut: AtomicU64,
    /// Chunks that arrived late.
    pub held: AtomicU64,
    /// Chunks that never arrived.
    pub lost: AtomicU64,
}

struct Shared {
    target: u16,
    mode: watch::Sender<Mode>,
    cuts: Mutex<Vec<Cut>>,
    /// Ports in servers' answers, and their replacements.
    renamed: Mutex<Vec<(u16, u16)>>,
    keys: Mutex<HashMap<String, Duration>>,
    counts: Counts,
}

/// The proxy; it ends with its runtime.
pub struct FaultProxy {
    pub port: u16,
    shared: Arc<Shared>,
}

impl FaultProxy {
    pub fn listen(runtime: &Handle, target: u16) -> FaultProxy {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target,
            mode: watch::Sender::new(Mode::Open),
            cuts: Mutex::default(),
            renamed: Mutex::default(),
            keys: Mutex::default(),
            counts: Counts::default(),
        });
        let accepting = shared.clone();
        runtime.spawn(accept(accepting, listener));
        FaultProxy { port, shared }
    }

    /// Replaces the first port by the second in servers' answers. Both have five digits.
    pub fn rename(&self, ports: &[(u16, u16)]) {
        self.shared.renamed.lock().unwrap().extend_from_slice(ports);
    }

    pub fn turn(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    pub fn arm(&self, cut: Cut) {
        self.shared.cuts.lock().unwrap().push(cut);
    }

    /// Removes the cuts that met no bytes.
    pub fn disarm(&self) {
        self.shared.cuts.lock().unwrap().clear();
    }

    pub fn is_armed(&self) -> bool {
        !self.shared.cuts.lock().unwrap().is_empty()
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Returns the idempotency keys of requests that the client's side began to write, and when
    /// each key was first observed.
    pub fn keys(&self) -> HashMap<String, Duration> {
        self.shared.keys.lock().unwrap().clone()
    }
}

/// Listens, except while connections are refused.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let (mut mode, address) = (shared.mode.subscribe(), listener.local_addr().unwrap());
    let mut listening = Some(listener);
    loop {
        let refuses = *mode.borrow_and_update() == Mode::Refused;
        match &listening {
            Some(_) if refuses => listening = None,
            None if !refuses => listening = TcpListener::bind(address).await.ok(),
            _ => {}
        }
        let client = async {
            match &listening {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = client => {
                let shared = shared.clone();
                tokio::spawn(async move { carry(&shared, client).await });
            }
            changed = mode.changed() => if changed.is_err() { return },
            // Another process may have the port for a moment.
            () = tokio::time::sleep(Duration::from_millis(20)), if listening.is_none() && !refuses => {}
        }
    }
}

async fn carry(shared: &Shared, mut client: TcpStream) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", shared.target)).await else {
        return client.set_zero_linger().unwrap_or(());
    };
    let lost = AtomicBool::new(false);
    let ended = {
        let ((client_in, client_out), (server_in, server_out)) = (client.split(), server.split());
        let there = pump(shared, Way::There, client_in, server_out, &lost);
        tokio::try_join!(there, pump(shared, Way::Back, server_in, client_out, &lost)).err()
    };
    if matches!(ended, Some(End::Reset)) {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
        return;
    }
    let _ = (client.shutdown().await, server.shutdown().await);
    // Bytes that the client writes before it notices the end count as written.
    let (mut reading, mut tail, mut chunk) = (client, Vec::new(), [0; 4096]);
    let drained = async {
        while let Ok(n @ 1..) = reading.read(&mut chunk).await {
            shared.look(&mut tail, &chunk[..n]);
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
}

/// Copies bytes in one direction until they end.
async fn pump(
    shared: &Shared,
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    lost: &AtomicBool,
) -> Result<(), End> {
    let mut mode = shared.mode.subscribe();
    let (mut chunk, mut waiting, mut tail) = ([0; 16 * 1024], Vec::new(), Vec::new());
    let mut ended = false;
    loop {
        tokio::select! {
            read = from.read(&mut chunk), if !ended => match read {
                Ok(n @ 1..) => {
                    if way == Way::There {
                        shared.look(&mut tail, &chunk[..n]);
                    }
                    waiting.extend_from_slice(&chunk[..n]);
                }
                Ok(0) | Err(_) => ended = true,
            },
            _ = mode.changed() => {}
        }
        let now = *mode.borrow_and_update();
        match now {
            Mode::Open if lost.load(Ordering::SeqCst) => return Err(End::Reset),
            Mode::Refused => return Err(End::Closed),
            Mode::Open => {
                if !waiting.is_empty() {
                    shared.deliver(way, &mut to, &mut waiting).await?;
                }
                if ended {
                    let _ = to.shutdown().await;
                    return Ok(());
                }
            }
            Mode::Held => {
                shared.counts.held.fetch_add(u64::from(!waiting.is_empty()), Ordering::SeqCst);
            }
            Mode::Lost if waiting.is_empty() => {}
            Mode::Lost => {
                shared.counts.lost.fetch_add(1, Ordering::SeqCst);
                lost.store(true, Ordering::SeqCst);
                waiting.clear();
            }
        }
    }
}

impl Shared {
    async fn deliver(
        &self,
        way: Way,
        to: &mut WriteHalf<'_>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), End> {
        let cut = {
            let mut cuts = self.cuts.lock().unwrap();
            let at = cuts.iter().position(|cut| cut.way == way);
            at.map(|at| cuts.remove(at))
        };
        if way == Way::Back {
            self.renamed.lock().unwrap().iter().for_each(|(from, to)| rename(bytes, *from, *to));
        }
        let Some(cut) = cut else {
            let written = to.write_all(bytes).await;
            bytes.clear();
            return written.map_err(|_| End::Closed);
        };
        let _ = to.write_all(&bytes[..cut.keep % bytes.len()]).await;
        self.counts.cut.fetch_add(1, Ordering::SeqCst);
        Err(if cut.reset { End::Reset } else { End::Closed })
    }

    /// Records the keys in the client's bytes; `tail` may contain the beginning of a key.
    fn look(&self, tail: &mut Vec<u8>, bytes: &[u8]) {
        const FIELD: &str = "idempotency-key: ";
        const TAIL: usize = 256;
        tail.extend_from_slice(bytes);
        let text = String::from_utf8_lossy(tail);
        for (at, _) in text.match_indices(FIELD) {
            if let Some((key, _)) = text[at + FIELD.len()..].split_once("\r\n") {
                self.keys.lock().unwrap().entry(key.to_owned()).or_insert_with(now);
            }
        }
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
}

/// Replaces a port in Redis's format: a separate number, or the end of an address, followed by the
/// end of the line.
fn rename(bytes: &mut [u8], from: u16, to: u16) {
    let (from, to) = (format!("{from}\r\n").into_bytes(), format!("{to}\r\n").into_bytes());
    assert_eq!(from.len(), to.len(), "ports of five digits");
    for at in 1..bytes.len().saturating_sub(from.len() - 1) {
        if matches!(bytes[at - 1], b':' | b'\n') && bytes[at..].starts_with(&from) {
            bytes[at..at + to.len()].copy_from_slice(&to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::rename;

    #[test]
    fn ports_are_renamed_only_where_redis_names_them() {
        let mut text =
            b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n40001\r\n:40001\r\n-MOVED 7 127.0.0.1:40001\r\n{\"n\":40001}\r\n".to_vec();
        rename(&mut text, 40001, 50002);
        let wanted = b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n50002\r\n:50002\r\n-MOVED 7 127.0.0.1:50002\r\n{\"n\":40001}\r\n";
        assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(wanted));
    }
}
