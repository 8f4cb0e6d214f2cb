//! The listener: connections within limits, timeouts for those who say nothing, and an orderly end.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use ipnet::IpNet;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::forwarding::BoxError;
use crate::gate::{AnswerBody, Budget, ClientSubject};
use crate::http_message::discard;
use crate::proxy::fields::{self, Peer};
use crate::proxy::inbound::announced::client_of;
use crate::proxy::inbound::connection_state::{
    ActiveRequest, ConnectionState, TrackedBody, idle_while_ending,
};
use crate::proxy::inbound::guarded_bytes::GuardedBytes;
use crate::proxy::inbound::inflow::{Account, Inflow};
use crate::proxy::inbound::inspect::{self, RequestBody};
use crate::proxy::inbound::peers::{Admitted, Peers};
use crate::proxy::inbound::protocol::{admit_head, protocol};
use crate::proxy::inbound::request_observer::RequestObserver;
use crate::proxy::inbound::tls_socket::TlsSocket;
use crate::proxy::tunnel::TunnelTerms;
use crate::refusal::{Refusal, RefusalRenderer, RefusalStyle};
use crate::telemetry::Observers;
use crate::tls::Identity;

/// What a listener allows.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_peer: usize,
    /// A request's header block, in bytes.
    pub header_bytes: usize,
    /// From a request's first byte to the end of its header block.
    pub header_timeout: Duration,
    /// How long a connection may say nothing between requests.
    pub idle_timeout: Duration,
    /// The common buffers, in which requests count from their head to the last byte of their answer.
    pub budget: Budget,
    /// Proxies in front, which are believed about their clients. They carry many, so the limit for one peer is not theirs.
    pub trusted: Arc<[IpNet]>,
    /// Whether those proxies announce the client of each connection by the PROXY protocol.
    pub proxy_protocol: bool,
}

impl ServerLimits {
    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|proxies| proxies.contains(&address))
    }

    /// How many connections an address may have.
    fn connections_of(&self, address: IpAddr) -> usize {
        if self.trusts(address) { usize::MAX } else { self.connections_per_peer }
    }
}

/// Connections that wait to be accepted. With the 128 that are usual a rush of clients, as after a restart, finds the queue
/// full, and each of them tries again only after a second. The system may allow fewer (`net.core.somaxconn`).
const BACKLOG: u32 = 1024;

/// Listens on an address, with a queue of 1,024 connections.
///
/// # Errors
/// The address can't be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Header fields of one request. Each costs memory beyond its bytes.
pub(in crate::proxy) const FIELDS_MAX: usize = 128;

/// How long, and for how many bytes, a closing connection still reads what its client sends.
const LINGER_MAX: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A listener in front of a service.
pub struct Server {
    listener: TcpListener,
    terms: Terms,
    identity: Option<Arc<Identity>>,
    observers: Observers,
    gauge: Gauge,
}

/// What new connections are served under: limits, and how refusals are told. Exchanged while the listener serves; a connection
/// keeps those that it began with. Cheap to clone.
#[derive(Clone)]
pub struct Terms(Arc<RwLock<(ServerLimits, RefusalRenderer)>>);

impl Terms {
    /// What the first connections are served under. How many connections there are at once stays as it is here.
    pub fn new(limits: ServerLimits, renderer: RefusalRenderer) -> Terms {
        Terms(Arc::new(RwLock::new((limits, renderer))))
    }

    /// Others, for the connections to come.
    pub fn replace(&self, limits: ServerLimits, renderer: RefusalRenderer) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (limits, renderer);
    }

    fn current(&self) -> (ServerLimits, RefusalRenderer) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Server {
    /// Serves on a bound listener.
    pub fn new(listener: TcpListener, terms: Terms, gauge: Gauge) -> Server {
        Server { listener, terms, identity: None, observers: Observers::default(), gauge }
    }

    /// The same, by TLS.
    pub fn with_identity(self, identity: Option<Arc<Identity>>) -> Server {
        Server { identity, ..self }
    }

    /// The same, with its requests told to these.
    pub fn with_observers(self, observers: Observers) -> Server {
        Server { observers, ..self }
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves, then accepts no more, and waits for requests under way until `drained` resolves.
    pub async fn run<S, RB>(
        self,
        service: S,
        stop: impl Future<Output = ()>,
        drained: impl Future<Output = ()>,
    ) where
        S: Service<Request<RequestBody>, Response = Response<AnswerBody<RB>>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        RB: Body<Data = Bytes> + Send + Unpin + 'static,
        RB::Error: Into<BoxError>,
    {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(self.terms.current().0.connections));
        let peers = Peers::default();
        let closing = CancellationToken::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let Some((stream, address, place)) = accepted else { continue };
            let (limits, renderer) = self.terms.current();
            let Some(peer) = peers.enter(address.ip(), limits.connections_of(address.ip())) else {
                continue;
            };
            let admitted = Admitted::new(place, peer, self.gauge.clone());
            let arrived = Arrived {
                stream,
                address: address.ip(),
                admitted,
                closing: closing.clone(),
                limits,
                renderer,
                identity: self.identity.clone(),
                observers: self.observers.clone(),
            };
            let (service, watcher) = (service.clone(), graceful.watcher());
            tokio::spawn(arrived.serve(service, watcher));
        }
        drop(self.listener);
        // Tunnels have no end of their own.
        closing.cancel();
        tokio::select! {
            () = graceful.shutdown() => {}
            () = drained => {}
        }
    }
}

/// A connection that was accepted.
struct Arrived {
    stream: TcpStream,
    address: IpAddr,
    admitted: Admitted,
    /// Cancelled when the listener ends: tunnels end with it.
    closing: CancellationToken,
    limits: ServerLimits,
    renderer: RefusalRenderer,
    identity: Option<Arc<Identity>>,
    observers: Observers,
}

impl Arrived {
    /// Serves its requests to the end.
    async fn serve<S, RB>(self, service: S, watcher: Watcher)
    where
        S: Service<Request<RequestBody>, Response = Response<AnswerBody<RB>>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        RB: Body<Data = Bytes> + Send + Unpin + 'static,
        RB::Error: Into<BoxError>,
    {
        let Arrived {
            mut stream,
            mut address,
            mut admitted,
            closing,
            limits,
            renderer,
            identity,
            observers,
        } = self;
        if limits.proxy_protocol && limits.trusts(address) {
            // Boxed: it is over soon, and a connection is kept for long.
            let client =
                Box::pin(client_of(&mut stream, address, limits.header_timeout, &closing)).await;
            let Some(client) =
                client.filter(|client| admitted.is_for(*client, limits.connections_of(*client)))
            else {
                return;
            };
            address = client;
        }
        let secure = identity.is_some();
        let Some(socket) = greet(stream, identity.as_deref(), limits.header_timeout).await else {
            return;
        };
        let subject = socket.client_subject().map(ClientSubject);
        let quiet = Arc::new(ConnectionState::default());
        let verdict = quiet.verdict.clone();
        let trusted = limits.trusts(address);
        let share = Some(admitted.share()).filter(|_| !trusted);
        let tunnel_terms = TunnelTerms { silence: limits.idle_timeout, closing: closing.clone() };
        let stream = TimedStream::new(socket, admitted, quiet.clone(), &limits);
        let budget = limits.budget.of_address(share.as_ref());
        let inflow = Arc::new(Inflow::new(budget.clone()));
        let io = GuardedBytes::new(stream, verdict.clone(), limits.header_bytes)
            .counting(Account::new(inflow.clone()));
        let peer = Peer::new(address, secure, trusted);
        let (late, requests) = (Arc::new(AtomicBool::new(false)), quiet.clone());
        let ending = idle_while_ending(closing, requests, late.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let busy = ActiveRequest::new(quiet.clone());
            let verdict = verdict.clone();
            let framed = request.version() == Version::HTTP_2;
            let checked = inspect::check(&request, &verdict, limits.header_bytes);
            let mut room = budget.hold();
            // Nobody keeps a head that is too large for longer than this takes.
            let checked = checked.and(admit_head(&mut request, limits.header_bytes, &mut room));
            if framed {
                quiet.framed.store(true, Ordering::Release);
                fields::join_cookies(request.headers_mut());
            }
            inspect::complete_target(&mut request, verdict.is_server_wide(busy.number()));
            request.extensions_mut().insert(peer.clone());
            share.iter().for_each(|share| drop(request.extensions_mut().insert(share.clone())));
            tunnel_terms.accompany(&mut request);
            if let Some(subject) = &subject {
                request.extensions_mut().insert(subject.clone());
            }
            let mut seen = RequestObserver::begin(&observers, &mut request, &peer, &verdict);
            let checked =
                if late.load(Ordering::Acquire) { Err(Refusal::Overloaded) } else { checked };
            let answered = checked.and_then(|()| inspect::max_forwards(&mut request));
            let (head, body) = request.into_parts();
            let (body, fault) = RequestBody::new(body, framed.then(|| inflow.clone()));
            let request = Request::from_parts(head, body);
            let (mut service, renderer) = (service.clone(), renderer.clone());
            async move {
                let mut response = match answered {
                    Ok(None) => service.call(request).await?,
                    Ok(Some(response)) => {
                        discard(request.into_body());
                        response
                    }
                    Err(problem) => {
                        discard(request.into_body());
                        renderer.render(&problem, RefusalStyle::default()).0.map(AnswerBody::whole)
                    }
                };
                // Whatever was answered was said of a request that its client never finished.
                if let Some(problem) = verdict.refused_in_body().or_else(|| fault.get()) {
                    response =
                        renderer.render(problem, RefusalStyle::default()).0.map(AnswerBody::whole);
                }
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    verdict.tunnel.store(true, Ordering::Release);
                }
                seen.answering(response.status());
                Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, busy, seen, room)))
            }
        });
        let connection = protocol(&limits)
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .into_owned();
        tokio::select! {
            ended = watcher.watch(connection) => if let Err(error) = ended {
                tracing::debug!(error = error.to_string(), "a client connection ended");
            },
            () = ending => tracing::debug!("a client connection is ended: its client did not take notice"),
        }
    }
}

/// The handshake, where there is one: it has as long as a header block.
async fn greet(
    stream: TcpStream,
    identity: Option<&Identity>,
    limit: Duration,
) -> Option<TlsSocket> {
    let Some(identity) = identity else { return Some(TlsSocket::Plain(stream)) };
    match timeout(limit, TlsAcceptor::from(identity.current()).accept(stream)).await {
        Ok(Ok(stream)) => Some(TlsSocket::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            None
        }
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Answers are small: waiting to fill a packet only delays them.
            let _ = stream.set_nodelay(true);
            Some((stream, address, place))
        }
        Err(error) => {
            // Out of file descriptors, most likely: the next try is only useful when some were closed.
            const PAUSE: Duration = Duration::from_millis(50);
            tracing::warn!(%error, "no connection could be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// A client connection that ends itself when the client says nothing for too long, or is too slow with a header block.
struct TimedStream {
    stream: TlsSocket,
    /// Held by the stream, which a tunnel takes over: it counts as a connection for as long as it is open.
    _admitted: Admitted,
    quiet: Arc<ConnectionState>,
    timer: Pin<Box<Sleep>>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// Since when the connection waits: for a first byte, or for the end of a header block.
    since: Instant,
    began: bool,
    /// How many requests had begun when that was last asked.
    requests_seen: u64,
    /// Since when the client has not taken what is written to it.
    stalled: Option<Instant>,
    /// While closing: how many bytes are still read and thrown away.
    lingering: Option<usize>,
}

impl TimedStream {
    fn new(
        stream: TlsSocket,
        admitted: Admitted,
        quiet: Arc<ConnectionState>,
        limits: &ServerLimits,
    ) -> TimedStream {
        let since = Instant::now();
        TimedStream {
            stream,
            _admitted: admitted,
            quiet,
            // A new connection has announced a request: its header block is already awaited.
            timer: Box::pin(tokio::time::sleep_until(since + limits.header_timeout)),
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            since,
            began: true,
            requests_seen: 0,
            stalled: None,
            lingering: None,
        }
    }

    /// Whether the time is over. One timer runs per connection and is moved only when it fires.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.quiet.verdict.tunnel.load(Ordering::Acquire) {
            return false;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let stalled = self.stalled.into_iter().chain(self.quiet.untaken_since());
            if stalled.min().is_some_and(|since| now >= since + self.idle_timeout) {
                return true;
            }
            let requests_seen = std::mem::replace(
                &mut self.requests_seen,
                self.quiet.begun.load(Ordering::Acquire),
            );
            if self.quiet.requests.load(Ordering::Acquire) > 0
                || requests_seen != self.requests_seen
            {
                // A request is under way, or was; it has timeouts of its own.
                self.since = now;
                self.began = false;
            }
            let in_header = self.began && !self.quiet.framed.load(Ordering::Acquire);
            let limit = if in_header { self.header_timeout } else { self.idle_timeout };
            if now >= self.since + limit {
                return true;
            }
            let next = (self.since + limit).min(now + self.header_timeout);
            self.timer.as_mut().reset(next);
        }
        false
    }
}

impl TimedStream {
    /// An answer goes out: the next bytes that come in begin a new request. A client who takes nothing is let go.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.began = false;
        if written.is_ready() {
            // On HTTP/2 it may as well be the answer to a ping.
            if !self.quiet.framed.load(Ordering::Acquire) {
                self.since = Instant::now();
            }
            self.stalled = None;
            return written;
        }
        if self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
        if self.poll_over(cx) {
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        } else {
            Poll::Pending
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending if self.poll_over(cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
            ready => {
                let idle = self.quiet.requests.load(Ordering::Acquire) == 0;
                if idle && !self.began && buffer.filled().len() > before {
                    self.since = Instant::now();
                    self.began = true;
                }
                ready
            }
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes gently: a socket that is closed with bytes unread resets the connection, and a reset can overtake the
    /// answer that was just written, such as a 431 to a header block that is still being sent.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.quiet.verdict.tunnel.load(Ordering::Acquire) {
            // What is still to be read belongs to the other direction.
            return Pin::new(&mut this.stream).poll_shutdown(cx);
        }
        if this.lingering.is_none() {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.timer.as_mut().reset(Instant::now() + LINGER_MAX);
        }
        let left = this.lingering.get_or_insert(LINGER_BYTES_MAX);
        let mut scratch = [0; 4096];
        while *left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len())
                }
                Poll::Ready(_) => break,
                Poll::Pending if this.timer.as_mut().poll(cx).is_ready() => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}
