//! An upstream that serves HTTP/2 behind TLS, and misbehaves on request.
//!
//! Values of a request's `X-Act` field: `hold` (until released), `refuse` (REFUSED_STREAM) and
//! `cut` (the connection ends without an answer). For gRPC: `grpc STATUS` (a message, then the
//! status in trailers), `grpc-head STATUS` (the status in the head of an answer without a body) and
//! `grpc-cut` (a message without a status). A [`Manner`] makes whole connections misbehave.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::until;
use super::upstream::ReceivedRequest;

/// How a connection is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Its requests are answered.
    Serve,
    /// Its first request is read; a GOAWAY marks it as not processed.
    GoAwayBefore,
    /// Its first request is read; a GOAWAY marks it as possibly processed, and the connection ends.
    GoAwayAfter,
}

struct Shared {
    manner: Mutex<Manner>,
    seen: Mutex<Vec<ReceivedRequest>>,
    connections: AtomicUsize,
    faults: AtomicUsize,
    released: watch::Sender<bool>,
    /// Ends open connections gracefully.
    retire: Mutex<CancellationToken>,
}

/// An HTTP/2 upstream.
pub struct Origin {
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Origin {
    pub fn start(identity: Arc<ServerConfig>) -> Origin {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Serve),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            released: watch::Sender::new(false),
            retire: Mutex::default(),
        });
        runtime.spawn(accept(listener, TlsAcceptor::from(identity), shared.clone()));
        Origin { port, shared, runtime: Some(runtime) }
    }

    /// Sets how new connections are treated.
    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    /// The requests that were executed.
    pub fn seen(&self) -> Vec<ReceivedRequest> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn executed(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// Waits until this many requests have arrived.
    #[track_caller]
    pub fn reached(&self, executed: usize) {
        until(&format!("{executed} executions"), || self.executed() >= executed);
    }

    /// Returns the number of connections so far, without failed handshakes.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of requests and connections that it treated badly.
    pub fn faults(&self) -> usize {
        self.shared.faults.load(Ordering::SeqCst)
    }

    /// Releases all requests with `hold`.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Sends GOAWAY on all connections, and closes them when their active requests are answered.
    pub fn retire_connections(&self) {
        std::mem::take(&mut *self.shared.retire.lock().unwrap()).cancel();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            shared.connections.fetch_add(1, Ordering::SeqCst);
            let manner = *shared.manner.lock().unwrap();
            if manner == Manner::Serve {
                return serve(stream, shared).await;
            }
            // The client may be gone before everything is sent.
            let _ = misbehave(stream, manner, &shared.faults).await;
        });
    }
}

async fn serve(stream: TlsStream<TcpStream>, shared: Arc<Shared>) {
    let (retire, cut) = (shared.retire.lock().unwrap().clone(), CancellationToken::new());
    let service = service_fn({
        let cut = cut.clone();
        move |request| execute(request, shared.clone(), cut.clone())
    });
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = cut.cancelled() => return,
        () = retire.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn execute(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    cut: CancellationToken,
) -> Result<Response<Trailed>, Box<dyn Error + Send + Sync>> {
    assert_eq!(request.version(), Version::HTTP_2);
    let (parts, body) = request.into_parts();
    let script =
        parts.headers.get("x-act").map_or("", |script| script.to_str().unwrap()).to_owned();
    if script == "refuse" {
        shared.faults.fetch_add(1, Ordering::SeqCst);
        return Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into());
    }
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let body = body.to_bytes().to_vec();
    let authority =
        (":authority".to_owned(), parts.uri.authority().map_or(String::new(), ToString::to_string));
    let others = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let trailers = trailers
        .iter()
        .map(|(name, value)| (format!("trailer: {name}"), value.to_str().unwrap().to_owned()));
    let fields = std::iter::once(authority).chain(others).chain(trailers).collect();
    let n = {
        let mut seen = shared.seen.lock().unwrap();
        seen.push(ReceivedRequest {
            line: format!("{} {}", parts.method, parts.uri.path()),
            fields,
            body,
        });
        seen.len()
    };
    match script.as_str() {
        "cut" => {
            shared.faults.fetch_add(1, Ordering::SeqCst);
            cut.cancel();
            std::future::pending::<Infallible>().await;
        }
        "hold" => drop(shared.released.subscribe().wait_for(|released| *released).await?),
        _ => {}
    }
    if let Some((form, status)) =
        script.strip_prefix("grpc").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
    {
        return Ok(grpc(form, status, n));
    }
    let response = Response::builder().status(201).header("content-type", "application/json");
    Ok(response
        .body(Full::new(format!("{{\"payment\":{n}}}").into()).with_trailers(ready(None)))?)
}

/// A body, with optional trailers.
type Trailed = WithTrailers<Full<Bytes>, Ready<Option<Result<HeaderMap, Infallible>>>>;

/// Builds the answer of a gRPC server, with a message that is unique to it.
fn grpc(form: &str, status: &str, n: usize) -> Response<Trailed> {
    let message = if form == "-head" {
        Bytes::new()
    } else {
        Bytes::from(vec![0, 0, 0, 0, 2, 8, u8::try_from(n).unwrap()])
    };
    let fields = [
        ("grpc-status", status.to_owned()),
        ("grpc-message", format!("call {n}")),
        ("x-once", n.to_string()),
    ];
    let fields: HeaderMap = fields
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::try_from(value).unwrap()))
        .collect();
    let trailers = if form.is_empty() { Some(Ok(fields.clone())) } else { None };
    let mut response = Response::new(Full::new(message).with_trailers(ready(trailers)));
    if form == "-head" {
        *response.headers_mut() = fields;
    }
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    response
}

/// Writes frames by hand that a correct server never sends.
async fn misbehave(
    mut stream: TlsStream<TcpStream>,
    manner: Manner,
    faults: &AtomicUsize,
) -> std::io::Result<()> {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, &[])).await?;
    let id = read_request(&mut stream).await?;
    let last = if manner == Manner::GoAwayAfter { id } else { 0 };
    const NO_ERROR: [u8; 4] = [0; 4];
    stream.write_all(&frame(GOAWAY, &[last.to_be_bytes(), NO_ERROR].concat())).await?;
    stream.flush().await?;
    faults.fetch_add(1, Ordering::SeqCst);
    if manner == Manner::GoAwayBefore {
        // The client closes the connection, because it is unusable.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    stream.shutdown().await
}

/// A frame of the connection (RFC 9113, section 4.1).
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, 0, 0, 0, 0, 0], payload].concat()
}

/// Reads to the end of the first request, and returns its stream.
async fn read_request(stream: &mut TlsStream<TcpStream>) -> std::io::Result<u32> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(u32::from_be_bytes(id));
        }
    }
}
