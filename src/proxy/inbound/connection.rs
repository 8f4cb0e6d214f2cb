//! A client connection, from its acceptance to its end.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::Watcher;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::forwarding::BoxError;
use crate::gate::{AddressShare, AnswerBody, Budget, ClientSubject};
use crate::http_message::discard;
use crate::proxy::fields::{self, Peer};
use crate::proxy::inbound::connection_state::{
    ActiveRequest, ConnectionState, TrackedBody, idle_while_closing,
};
use crate::proxy::inbound::guarded_bytes::GuardedBytes;
use crate::proxy::inbound::http_builder::http_builder;
use crate::proxy::inbound::inflow::{Inflow, InflowAccount};
use crate::proxy::inbound::inspect;
use crate::proxy::inbound::limits::ServerLimits;
use crate::proxy::inbound::peers::ConnectionPermit;
use crate::proxy::inbound::proxy_header::announced_client;
use crate::proxy::inbound::request_body::RequestBody;
use crate::proxy::inbound::request_observer::RequestObserver;
use crate::proxy::inbound::timed_stream::TimedStream;
use crate::proxy::inbound::tls_socket::TlsSocket;
use crate::proxy::tunnel::TunnelTerms;
use crate::refusal::{Refusal, RefusalRenderer, RefusalStyle};
use crate::telemetry::Observers;
use crate::tls::Identity;

/// An accepted connection.
pub(in crate::proxy) struct AcceptedConnection {
    pub stream: TcpStream,
    pub address: IpAddr,
    pub permit: ConnectionPermit,
    /// Cancelled when the listener ends. This ends tunnels.
    pub closing: CancellationToken,
    pub limits: ServerLimits,
    pub renderer: RefusalRenderer,
    pub identity: Option<Arc<Identity>>,
    pub observers: Observers,
}

impl AcceptedConnection {
    /// Serves the connection's requests until it ends.
    pub async fn serve<S, RB>(self, service: S, watcher: Watcher)
    where
        S: Service<Request<RequestBody>, Response = Response<AnswerBody<RB>>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        RB: Body<Data = Bytes> + Send + Unpin + 'static,
        RB::Error: Into<BoxError>,
    {
        let AcceptedConnection { mut stream, mut address, mut permit, closing, limits, .. } = self;
        if limits.proxy_protocol && limits.trusts(address) {
            // Boxed, because this short step would otherwise enlarge the future of the whole
            // connection.
            let client = announced_client(&mut stream, address, limits.header_timeout, &closing);
            let client = Box::pin(client).await;
            let Some(client) =
                client.filter(|client| permit.move_to(*client, limits.connections_of(*client)))
            else {
                return;
            };
            address = client;
        }
        let secure = self.identity.is_some();
        let identity = self.identity.as_deref();
        let Some(socket) = accept_tls(stream, identity, limits.header_timeout).await else {
            return;
        };
        let state = Arc::new(ConnectionState::default());
        let trusted = limits.trusts(address);
        let share = Some(permit.share()).filter(|_| !trusted);
        let budget = limits.budget.of_address(share.as_ref());
        let inflow = Arc::new(Inflow::new(budget.clone()));
        let refusing = Arc::new(AtomicBool::new(false));
        let requests = RequestHandler {
            state: state.clone(),
            budget,
            inflow: inflow.clone(),
            header_bytes: limits.header_bytes,
            peer: Peer::new(address, secure, trusted),
            share,
            subject: socket.client_subject().map(ClientSubject),
            tunnel_terms: TunnelTerms {
                idle_timeout: limits.idle_timeout,
                closing: closing.clone(),
            },
            observers: self.observers,
            renderer: self.renderer,
            refusing: refusing.clone(),
        };
        let stream = TimedStream::new(socket, permit, state.clone(), &limits);
        let io = GuardedBytes::new(stream, state.verdict.clone(), limits.header_bytes)
            .counting(InflowAccount::new(inflow));
        let service = service_fn(move |request| requests.answer(request, service.clone()));
        let connection = http_builder(&limits)
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .into_owned();
        tokio::select! {
            ended = watcher.watch(connection) => if let Err(error) = ended {
                tracing::debug!(error = error.to_string(), "a client connection failed");
            },
            () = idle_while_closing(closing, state, refusing) => tracing::debug!(
                "closed an idle client connection: its client did not react to the shutdown"
            ),
        }
    }
}

/// Performs the TLS handshake if the listener has an identity. The handshake may take `limit` at
/// most.
async fn accept_tls(
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

/// A response that keeps its request active until its body is dropped.
type TrackedResponse<RB> = Response<TrackedBody<AnswerBody<RB>>>;

/// Answers the requests of one connection.
struct RequestHandler {
    state: Arc<ConnectionState>,
    budget: Budget,
    inflow: Arc<Inflow>,
    header_bytes: usize,
    peer: Peer,
    /// The share of the client's address in the common limits; `None` for a trusted proxy.
    share: Option<Arc<AddressShare>>,
    subject: Option<ClientSubject>,
    tunnel_terms: TunnelTerms,
    observers: Observers,
    renderer: RefusalRenderer,
    /// Whether new requests are refused, because the connection is about to be closed.
    refusing: Arc<AtomicBool>,
}

impl RequestHandler {
    /// Checks a request, and calls the service with it. A faulty request gets its refusal.
    fn answer<S, RB>(
        &self,
        mut request: Request<Incoming>,
        mut service: S,
    ) -> impl Future<Output = Result<TrackedResponse<RB>, Infallible>> + use<S, RB>
    where
        S: Service<Request<RequestBody>, Response = Response<AnswerBody<RB>>, Error = Infallible>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let active = ActiveRequest::new(self.state.clone());
        let verdict = self.state.verdict.clone();
        let framed = request.version() == Version::HTTP_2;
        let checked = inspect::check(&request, &verdict, self.header_bytes);
        let mut memory = self.budget.hold();
        // Also called after a failed check, so that a head that is too large is dropped at once.
        let checked =
            checked.and(inspect::admit_head(&mut request, self.header_bytes, &mut memory));
        if framed {
            self.state.framed.store(true, Ordering::Release);
            fields::join_cookies(request.headers_mut());
        }
        inspect::complete_target(&mut request, verdict.is_server_wide(active.number()));
        self.add_extensions(&mut request);
        let mut observer =
            RequestObserver::begin(&self.observers, &mut request, &self.peer, &verdict);
        let refusing = self.refusing.load(Ordering::Acquire);
        let checked = if refusing { Err(Refusal::Overloaded) } else { checked };
        let checked = checked.and_then(|()| inspect::max_forwards(&mut request));
        let (head, body) = request.into_parts();
        let (body, fault) = RequestBody::new(body, framed.then(|| self.inflow.clone()));
        let request = Request::from_parts(head, body);
        let renderer = self.renderer.clone();
        async move {
            let mut response = match checked {
                Ok(None) => service.call(request).await?,
                Ok(Some(response)) => {
                    discard(request.into_body());
                    response
                }
                Err(refusal) => {
                    discard(request.into_body());
                    renderer.render(&refusal, RefusalStyle::default()).0.map(AnswerBody::whole)
                }
            };
            // The body was faulty, so the service answered a request that never arrived completely.
            if let Some(refusal) = verdict.refused_in_body().or_else(|| fault.get()) {
                response =
                    renderer.render(refusal, RefusalStyle::default()).0.map(AnswerBody::whole);
            }
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                verdict.tunnel.store(true, Ordering::Release);
            }
            observer.record_status(response.status());
            Ok(response.map(|body| TrackedBody::new(body, active, observer, memory)))
        }
    }

    /// Adds the data of the connection and of its client to a request.
    fn add_extensions(&self, request: &mut Request<Incoming>) {
        let extensions = request.extensions_mut();
        extensions.insert(self.peer.clone());
        if let Some(share) = &self.share {
            extensions.insert(share.clone());
        }
        if let Some(subject) = &self.subject {
            extensions.insert(subject.clone());
        }
        self.tunnel_terms.accompany(request);
    }
}
