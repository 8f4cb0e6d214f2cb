//! An HTTP/2 upstream, behind TLS or plain, that reads and writes frames by hand. It controls its
//! SETTINGS, its windows and its reads, and records each frame that reaches it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    frame,
};
use super::until;

/// Identifiers of settings (RFC 9113, section 6.5.2).
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A header block of an answer: `:status: 200` from the static table (RFC 7541, appendix A).
pub const STATUS_200: &[u8] = &[0x80 | 8];

/// The received part of a request.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub connection: usize,
    pub stream: u32,
    pub body: Vec<u8>,
    /// END_STREAM has arrived.
    pub complete: bool,
    /// The client has reset it.
    pub reset: bool,
    answered: bool,
}

/// Builds the frames of an answer on a stream.
type Script = Box<dyn Fn(u32) -> Vec<u8> + Send>;

struct Shared {
    script: Mutex<Option<Script>>,
    arrivals: Mutex<Vec<Arrival>>,
    /// Senders of bytes to each connection, indexed by its number.
    writers: Mutex<Vec<mpsc::UnboundedSender<Vec<u8>>>>,
    /// SETTINGS of new connections; not sent if `silent`.
    settings: Mutex<Vec<(u16, u32)>>,
    silent: AtomicBool,
    accepting: AtomicBool,
    reading: watch::Sender<bool>,
    holding: AtomicBool,
    acknowledged: AtomicUsize,
    ended: AtomicUsize,
    /// The highest number of requests open at once on one connection.
    most_open: AtomicUsize,
}

/// The upstream.
pub struct FrameOrigin {
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl FrameOrigin {
    /// Starts an upstream that sends these settings on each connection.
    pub fn start(identity: Arc<ServerConfig>, settings: &[(u16, u32)]) -> FrameOrigin {
        FrameOrigin::listen(Some(TlsAcceptor::from(identity)), settings)
    }

    /// Does the same without TLS.
    pub fn plain(settings: &[(u16, u32)]) -> FrameOrigin {
        FrameOrigin::listen(None, settings)
    }

    fn listen(acceptor: Option<TlsAcceptor>, settings: &[(u16, u32)]) -> FrameOrigin {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            arrivals: Mutex::default(),
            writers: Mutex::default(),
            settings: Mutex::new(settings.to_vec()),
            silent: AtomicBool::new(false),
            accepting: AtomicBool::new(true),
            reading: watch::Sender::new(true),
            holding: AtomicBool::new(false),
            acknowledged: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        });
        runtime.spawn(accept(listener, acceptor, shared.clone()));
        FrameOrigin { port, shared, runtime: Some(runtime) }
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    /// Returns the number of complete requests so far.
    pub fn executed(&self) -> usize {
        self.arrivals().iter().filter(|arrival| arrival.complete).count()
    }

    #[track_caller]
    pub fn reached(&self, executed: usize) {
        until(&format!("{executed} executions"), || self.executed() >= executed);
    }

    /// Returns the number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.writers.lock().unwrap().len()
    }

    /// Returns the number of connections that ended.
    pub fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::SeqCst)
    }

    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }

    /// Sends no SETTINGS to new connections.
    pub fn stay_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::SeqCst);
    }

    /// Closes new connections at once, or accepts them again.
    pub fn take_connections(&self, accepting: bool) {
        self.shared.accepting.store(accepting, Ordering::SeqCst);
    }

    /// Stops or resumes reading from the connections.
    pub fn read(&self, reading: bool) {
        self.shared.reading.send_replace(reading);
    }

    /// Answers with these frames from now on.
    pub fn answer_by(&self, script: impl Fn(u32) -> Vec<u8> + Send + 'static) {
        *self.shared.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Answers nothing until [`FrameOrigin::release`].
    pub fn hold(&self) {
        self.shared.holding.store(true, Ordering::SeqCst);
    }

    /// Answers all complete requests, and later ones.
    pub fn release(&self) {
        self.shared.holding.store(false, Ordering::SeqCst);
        answer(&self.shared);
    }

    /// Ends each connection after the bytes that are already queued.
    pub fn end_connections(&self) {
        self.write_to_all(&[]);
    }

    /// Writes the same bytes to each connection; empty bytes end it.
    pub fn write_to_all(&self, bytes: &[u8]) {
        for writer in &*self.shared.writers.lock().unwrap() {
            // The connection may have ended.
            let _ = writer.send(bytes.to_vec());
        }
    }

    /// Sets the settings of new connections.
    pub fn begin_with(&self, settings: &[(u16, u32)]) {
        *self.shared.settings.lock().unwrap() = settings.to_vec();
    }

    /// Sends SETTINGS to all connections and waits until each has acknowledged them. New
    /// connections get them too.
    pub fn announce(&self, settings: &[(u16, u32)]) {
        self.begin_with(settings);
        let before = self.shared.acknowledged.load(Ordering::SeqCst);
        self.write_to_all(&settings_frame(settings));
        until("the settings to be acknowledged", || {
            self.shared.acknowledged.load(Ordering::SeqCst) > before
        });
    }
}

impl Drop for FrameOrigin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn settings_frame(settings: &[(u16, u32)]) -> Vec<u8> {
    let pairs: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &pairs)
}

/// A connection, with or without TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        if !shared.accepting.load(Ordering::SeqCst) {
            continue;
        }
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            let stream: Box<dyn Io> = match acceptor {
                None => Box::new(stream),
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => return,
                },
            };
            let (reader, writer) = split(stream);
            let (sender, receiver) = mpsc::unbounded_channel();
            let connection = {
                let mut writers = shared.writers.lock().unwrap();
                writers.push(sender.clone());
                writers.len() - 1
            };
            if !shared.silent.load(Ordering::SeqCst) {
                sender.send(settings_frame(&shared.settings.lock().unwrap())).unwrap();
            }
            tokio::spawn(write(writer, receiver));
            // Ends with the connection.
            let _ = read(reader, connection, &sender, &shared).await;
            shared.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

async fn write(
    mut writer: WriteHalf<Box<dyn Io>>,
    mut receiver: mpsc::UnboundedReceiver<Vec<u8>>,
) -> std::io::Result<()> {
    while let Some(bytes) = receiver.recv().await {
        if bytes.is_empty() {
            return writer.shutdown().await;
        }
        writer.write_all(&bytes).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn read(
    mut reader: ReadHalf<Box<dyn Io>>,
    connection: usize,
    sender: &mpsc::UnboundedSender<Vec<u8>>,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut reading = shared.reading.subscribe();
    let mut preface = [0; 24];
    reader.read_exact(&mut preface).await?;
    loop {
        let _ = reading.wait_for(|reading| *reading).await;
        let mut head = [0; 9];
        reader.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        reader.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes(id);
        match kind {
            SETTINGS if flags & ACK != 0 => {
                shared.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            SETTINGS => drop(sender.send(frame(SETTINGS, ACK, 0, &[]))),
            PING if flags & ACK == 0 => drop(sender.send(frame(PING, ACK, 0, &payload))),
            HEADERS | DATA | RST_STREAM => take((kind, flags, payload), connection, stream, shared),
            WINDOW_UPDATE | GOAWAY | PING => {}
            other => panic!("an unexpected frame of type {other}"),
        }
    }
}

fn take(
    (kind, flags, payload): (u8, u8, Vec<u8>),
    connection: usize,
    stream: u32,
    shared: &Shared,
) {
    {
        let mut arrivals = shared.arrivals.lock().unwrap();
        if kind == HEADERS {
            arrivals.push(Arrival {
                connection,
                stream,
                body: vec![],
                complete: false,
                reset: false,
                answered: false,
            });
        }
        let is_open = |arrival: &&Arrival| {
            arrival.connection == connection && !arrival.answered && !arrival.reset
        };
        shared.most_open.fetch_max(arrivals.iter().filter(is_open).count(), Ordering::SeqCst);
        let arrival = arrivals
            .iter_mut()
            .find(|arrival| (arrival.connection, arrival.stream) == (connection, stream))
            .unwrap();
        match kind {
            RST_STREAM => arrival.reset = true,
            DATA => arrival.body.extend_from_slice(&payload),
            _ => {}
        }
        arrival.complete |= kind != RST_STREAM && flags & END_STREAM != 0;
    }
    if !shared.holding.load(Ordering::SeqCst) {
        answer(shared);
    }
}

/// Answers all unanswered complete requests: by the script, or with status 200 and a unique body.
fn answer(shared: &Shared) {
    let mut arrivals = shared.arrivals.lock().unwrap();
    let writers = shared.writers.lock().unwrap();
    let script = shared.script.lock().unwrap();
    for (n, arrival) in arrivals.iter_mut().enumerate() {
        if arrival.complete && !arrival.answered && !arrival.reset {
            arrival.answered = true;
            let plain = |stream| {
                let body = frame(DATA, END_STREAM, stream, format!("answer {n}").as_bytes());
                [frame(HEADERS, END_HEADERS, stream, STATUS_200), body].concat()
            };
            let frames = script
                .as_ref()
                .map_or_else(|| plain(arrival.stream), |script| script(arrival.stream));
            let _ = writers[arrival.connection].send(frames);
        }
    }
}
