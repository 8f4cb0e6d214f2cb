//! The listener: accepts connections within limits, and shuts down gracefully.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::forwarding::BoxError;
use crate::gate::AnswerBody;
use crate::proxy::inbound::connection::AcceptedConnection;
use crate::proxy::inbound::limits::ServerTerms;
use crate::proxy::inbound::peers::{ConnectionPermit, Peers};
use crate::proxy::inbound::request_body::RequestBody;
use crate::telemetry::Observers;
use crate::tls::Identity;

/// The length of the queue of connections that wait to be accepted. The usual 128 are too few if
/// many clients connect at once, for example after a restart: a client that finds the queue full
/// tries again only after a second. The system may allow fewer (`net.core.somaxconn`).
const BACKLOG: u32 = 1024;

/// Listens on an address, with a queue of 1,024 connections.
///
/// # Errors
/// The address can't be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the previous process.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener in front of a service.
pub struct Server {
    listener: TcpListener,
    terms: ServerTerms,
    identity: Option<Arc<Identity>>,
    observers: Observers,
    gauge: Gauge,
}

impl Server {
    /// Creates a server on a bound listener. `gauge` counts its connections.
    pub fn new(listener: TcpListener, terms: ServerTerms, gauge: Gauge) -> Server {
        Server { listener, terms, identity: None, observers: Observers::default(), gauge }
    }

    /// Serves TLS if there is an identity.
    pub fn with_identity(self, identity: Option<Arc<Identity>>) -> Server {
        Server { identity, ..self }
    }

    /// Reports all requests to these observers.
    pub fn with_observers(self, observers: Observers) -> Server {
        Server { observers, ..self }
    }

    /// Returns the address of the listener.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves. Then accepts no more connections, and waits for active
    /// requests until `drained` resolves.
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
        let permits = Arc::new(Semaphore::new(self.terms.current().0.connections));
        let peers = Peers::default();
        let closing = CancellationToken::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = accept(&self.listener, &permits) => accepted,
            };
            let Some((stream, address, permit)) = accepted else { continue };
            let (limits, renderer) = self.terms.current();
            let Some(peer) = peers.enter(address.ip(), limits.connections_of(address.ip())) else {
                continue;
            };
            let connection = AcceptedConnection {
                stream,
                address: address.ip(),
                permit: ConnectionPermit::new(permit, peer, self.gauge.clone()),
                closing: closing.clone(),
                limits,
                renderer,
                identity: self.identity.clone(),
                observers: self.observers.clone(),
            };
            let (service, watcher) = (service.clone(), graceful.watcher());
            tokio::spawn(connection.serve(service, watcher));
        }
        drop(self.listener);
        // Without this, a tunnel would stay open until one of its two ends closes it.
        closing.cancel();
        tokio::select! {
            () = graceful.shutdown() => {}
            () = drained => {}
        }
    }
}

/// Waits for a free permit, and accepts the next connection.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Answers are small, so waiting until a packet is full would only delay them.
            let _ = stream.set_nodelay(true);
            Some((stream, address, permit))
        }
        Err(error) => {
            // Most likely no file descriptors are left. The next try can succeed only after some
            // were closed.
            const PAUSE: Duration = Duration::from_millis(50);
            tracing::warn!(%error, "no connection could be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}
