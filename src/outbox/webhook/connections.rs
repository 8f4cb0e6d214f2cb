//! The address of a receiver, and the HTTP/1.1 connections to it.
//!
//! A request takes the connection that was used last. If all are busy, it opens one.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::WebhookError;
use super::failure::ExchangeFailure;
use crate::tls;

/// Longest time that a connection is kept without a request. Some servers close idle connections
/// after 5 s, and a request that crosses the close is lost.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Age from which a connection takes no further request. Otherwise a busy receiver that moved to
/// another address would never be looked up again.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Limit for the fields of an answer.
const FIELDS_MAX: usize = 256;

/// Limit for the head of an answer, and for one read of its body, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// A connection that takes one request at a time. Dropping it closes it.
pub(super) struct WebhookConnection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// The task that reads and writes.
    _driver: AbortOnDropHandle<()>,
    opened: Instant,
}

/// The receiver's address, and the idle connections to it.
pub(super) struct WebhookConnections {
    host: String,
    port: u16,
    host_field: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Arc<Mutex<IdleWebhookConnections>>,
}

#[derive(Default)]
struct IdleWebhookConnections {
    /// Each connection with the time at which it became idle, in order of that time.
    connections: Vec<(Instant, WebhookConnection)>,
    /// Whether the task that closes idle connections runs.
    reaper: bool,
}

impl WebhookConnections {
    /// Checks the address and reads the authorities. Opens no connection yet.
    ///
    /// # Errors
    /// See [`WebhookError`].
    pub(super) fn new(
        url: &Uri,
        ca_file: Option<&Path>,
    ) -> Result<WebhookConnections, WebhookError> {
        let uses_tls = match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(WebhookError::Scheme),
        };
        let authority = url.authority().ok_or(WebhookError::Host)?;
        let (host, port) = host_and_port(authority, if uses_tls { 443 } else { 80 })?;
        let host_field =
            HeaderValue::from_str(authority.as_str()).map_err(|_| WebhookError::Host)?;
        let tls = match (uses_tls, ca_file) {
            (true, ca_file) => Some(tls_connector(&host, ca_file)?),
            (false, Some(_)) => return Err(WebhookError::CaFileUnused),
            (false, None) => None,
        };
        Ok(WebhookConnections { host, port, host_field, tls, idle: Arc::default() })
    }

    /// Returns the `Host` field of requests.
    pub(super) fn host_field(&self) -> &HeaderValue {
        &self.host_field
    }

    /// Sends a request, and returns the answer with the connection that its body arrives on.
    ///
    /// `within` is the caller's limit for all of it, which this only divides among the receiver's
    /// addresses. A request is repeated only if a kept connection ended before any part of the
    /// request was written.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<(Response<Incoming>, WebhookConnection), ExchangeFailure> {
        loop {
            let (mut connection, is_kept) = match self.take() {
                Some(connection) => (connection, true),
                None => (self.open(within).await?, false),
            };
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if is_kept => request = unsent,
                    _ => return Err(ExchangeFailure::of_exchange(error.error())),
                },
            }
        }
    }

    /// Keeps a connection for the next request, as soon as it is ready for it. Its answer must have
    /// been read.
    pub(super) async fn keep(&self, mut connection: WebhookConnection) {
        if connection.opened.elapsed() >= AGE_MAX || connection.sender.ready().await.is_err() {
            return;
        }
        let mut idle = lock(&self.idle);
        idle.connections.push((Instant::now(), connection));
        if !std::mem::replace(&mut idle.reaper, true) {
            tokio::spawn(reap(Arc::downgrade(&self.idle)));
        }
    }

    fn take(&self) -> Option<WebhookConnection> {
        let mut idle = lock(&self.idle);
        while let Some((since, connection)) = idle.connections.pop() {
            if since.elapsed() < IDLE_MAX && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Returns whether no idle connection is open.
    #[cfg(test)]
    pub(super) fn idle_are_closed(&self) -> bool {
        lock(&self.idle).connections.iter().all(|(_, connection)| connection.sender.is_closed())
    }

    async fn open(&self, within: Duration) -> Result<WebhookConnection, ExchangeFailure> {
        let stream = self.connect(within).await?;
        stream.set_nodelay(true).map_err(|error| ExchangeFailure::of_connecting(error.kind()))?;
        let stream: Box<dyn ByteStream> = match &self.tls {
            None => Box::new(stream),
            Some((tls, name)) => {
                let connected = tls.connect(name.clone(), stream).await;
                Box::new(connected.map_err(|error| ExchangeFailure::of_tls(&error))?)
            }
        };
        let mut builder = http1::Builder::new();
        builder.max_headers(FIELDS_MAX).max_buf_size(HEAD_MAX);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(|error| ExchangeFailure::of_exchange(&error))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to a sink ended");
            }
        });
        let driver = AbortOnDropHandle::new(driver);
        Ok(WebhookConnection { sender, _driver: driver, opened: Instant::now() })
    }

    /// Connects to the first of the receiver's addresses that responds.
    async fn connect(&self, within: Duration) -> Result<TcpStream, ExchangeFailure> {
        let found = lookup_host((self.host.as_str(), self.port)).await;
        let addresses: Vec<_> =
            found.map_err(|error| ExchangeFailure::of_lookup(&error))?.collect();
        // An address that does not respond leaves the others, TLS and the answer a share.
        let shares = u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
        let share = if addresses.len() == 1 { within } else { within / shares };
        let mut last = ExchangeFailure::NameNotFound("it has no address".to_owned());
        for address in addresses {
            last = match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => ExchangeFailure::of_connecting(error.kind()),
                Err(_) => ExchangeFailure::of_connecting(std::io::ErrorKind::TimedOut),
            };
        }
        Err(last)
    }
}

/// Returns the host, without the brackets of an IPv6 address, and the port.
fn host_and_port(authority: &Authority, default: u16) -> Result<(String, u16), WebhookError> {
    if authority.as_str().contains('@') {
        return Err(WebhookError::Credentials);
    }
    let host = authority.host();
    let port = match authority.as_str().strip_prefix(host) {
        Some("" | ":") => default,
        Some(port) => port.trim_start_matches(':').parse().map_err(|_| WebhookError::Host)?,
        None => return Err(WebhookError::Host),
    };
    match host.trim_start_matches('[').trim_end_matches(']') {
        "" => Err(WebhookError::Host),
        host => Ok((host.to_owned(), port)),
    }
}

fn tls_connector(
    host: &str,
    ca_file: Option<&Path>,
) -> Result<(TlsConnector, ServerName<'static>), WebhookError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| WebhookError::Host)?;
    let pem = ca_file.map(|file| {
        std::fs::read(file)
            .map_err(|error| WebhookError::CaFile { file: file.to_owned(), why: error.to_string() })
    });
    let config = tls::client_config(pem.transpose()?.as_deref(), None, &[b"http/1.1"])?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// Closes connections that were idle for too long. Ends when no idle connection is left, or with
/// the receiver.
async fn reap(idle: Weak<Mutex<IdleWebhookConnections>>) {
    loop {
        sleep(IDLE_MAX / 2).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        idle.connections.retain(|(since, connection)| {
            since.elapsed() < IDLE_MAX && !connection.sender.is_closed()
        });
        if idle.connections.is_empty() {
            idle.reaper = false;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}
