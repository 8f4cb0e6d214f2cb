//! One upstream: its settings, and the connections to it.

use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::uri::{Authority, Scheme};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;

use crate::entropy::{Entropy, EntropyError};
use crate::forwarding::{BoxError, ForwardError};
use crate::gate::Payload;
use crate::proxy::bounded_read::BoundedReads;
use crate::proxy::outbound::failure::{FIELDS_MAX, HEAD_MAX};
use crate::proxy::outbound::multiplexed::{Http2Connection, StreamSlot};
use crate::proxy::outbound::pool::{Http1Connection, Pool};
use crate::proxy::outbound::race;
use crate::proxy::outbound::wire::{Wire, WriteTracker};
use crate::tls::{self, ClientIdentity, TrustError};

/// The address of an upstream, and the rules for connections to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// The longest time to get a connection that can be written to, including name look-up and TLS.
    pub connect_timeout: Duration,
    /// The longest time that a pooled connection may be idle.
    pub idle_timeout: Duration,
    /// The age from which a connection takes no further request. For each connection, the limit is
    /// lowered at random by up to a quarter.
    pub max_connection_age: Duration,
    /// When HTTP/2 is used.
    pub http2: Http2,
    /// Whether the client's `Host` is kept.
    pub preserve_host: bool,
    /// Certificates to trust instead of the system's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The gateway's certificate, for an upstream that requests one.
    pub identity: Option<Arc<ClientIdentity>>,
    /// Whether `Location` fields that name the upstream's address get the client's address instead.
    pub rewrite_location: bool,
}

/// When HTTP/2 is used for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// If TLS negotiates it.
    Negotiated,
    /// Always, without TLS and without an upgrade (RFC 9113, section 3.3).
    PriorKnowledge,
}

/// The reason why an upstream can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There are no trusted certificates, or they can't be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The host is not a valid name for TLS.
    #[error("`{0}` is not a host name that a certificate can be checked against")]
    Name(String),
    /// The system gives no random numbers for the ages of connections.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// One upstream, with its connections. `B` is the type of bodies that stream through.
pub struct Upstream<B> {
    pub(super) settings: UpstreamSettings,
    /// The `Host` field for the upstream's own address.
    pub(super) host: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) pool: Pool<Payload<B>>,
}

/// A connection that takes one request.
pub(super) enum RequestConnection<B> {
    Http1(Http1Connection<Payload<B>>),
    /// A stream slot on an HTTP/2 connection.
    Http2(StreamSlot),
}

impl<B> Upstream<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Sets up an upstream. Opens no connection yet.
    pub fn new(settings: UpstreamSettings) -> Result<Upstream<B>, UpstreamError> {
        let invalid = || UpstreamError::Name(settings.authority.to_string());
        let host = HeaderValue::from_str(settings.authority.as_str()).map_err(|_| invalid())?;
        let tls = if settings.scheme == Scheme::HTTPS {
            let name = unbracketed_host(&settings.authority).to_owned();
            let name = ServerName::try_from(name).map_err(|_| invalid())?;
            Some((
                TlsConnector::from(Arc::new(tls::client_config(
                    settings.ca_pem.as_deref(),
                    settings.identity.clone(),
                    &[b"h2", b"http/1.1"],
                )?)),
                name,
            ))
        } else {
            None
        };
        let pool =
            Pool::new(settings.idle_timeout, settings.max_connection_age, Entropy::from_system()?);
        pool.note_negotiated(settings.http2 == Http2::PriorKnowledge);
        Ok(Upstream { host, tls, pool, settings })
    }

    /// Returns the settings of this upstream.
    pub fn settings(&self) -> &UpstreamSettings {
        &self.settings
    }

    /// Returns whether connections to this upstream use TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns an open connection that takes a request.
    pub(super) fn pooled(&self, protected: bool) -> Option<RequestConnection<B>> {
        self.pool
            .lane(protected)
            .slot(self.pool.idle_max())
            .map(RequestConnection::Http2)
            .or_else(|| self.pool.take().map(RequestConnection::Http1))
    }

    /// Opens a connection, or takes a stream slot that becomes free before it is open. Returns the
    /// connection and whether it is new.
    ///
    /// If the upstream uses HTTP/2 and already has the maximum of connections, this first waits
    /// until one of them ends. `connect_timeout` bounds the whole time.
    pub(super) async fn connect(
        &self,
        protected: bool,
    ) -> Result<(RequestConnection<B>, bool), ForwardError> {
        let unreachable = |error: &dyn Display| ForwardError::NeverSent(error.to_string());
        let connecting = async {
            let lane = self.pool.lane(protected);
            let mut opening = pin!(async {
                let permits = self.pool.expects_http2().then(|| lane.permits.clone());
                let permit = match permits {
                    Some(permits) => permits.acquire_owned().await.ok(),
                    None => None,
                };
                self.open(protected, permit).await
            });
            loop {
                let mut freed = pin!(lane.freed.notified());
                freed.as_mut().enable();
                if let Some(pooled) = self.pooled(protected) {
                    return Ok((pooled, false));
                }
                tokio::select! {
                    biased;
                    opened = &mut opening => return opened.map(|connection| (connection, true)),
                    () = freed => {}
                }
            }
        };
        match tokio::time::timeout(self.settings.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| unreachable(&error)),
            Err(_) => Err(unreachable(&"no connection in time")),
        }
    }

    /// Opens a connection. `permit` is a permit for one more HTTP/2 connection.
    async fn open(
        &self,
        protected: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<RequestConnection<B>, BoxError> {
        let default_port = if self.uses_tls() { 443 } else { 80 };
        let port = self.settings.authority.port_u16().unwrap_or(default_port);
        let stream = race::connect(unbracketed_host(&self.settings.authority), port).await?;
        stream.set_nodelay(true)?;
        let tracker = Arc::new(WriteTracker::default());
        // The tracker is below TLS, so that each counted byte has left the process. The TLS layer
        // may take bytes and fail later.
        let wire = Wire::new(stream, tracker.clone());
        let Some((tls, name)) = &self.tls else {
            return match self.settings.http2 {
                Http2::Negotiated => self.begin_http1(wire, tracker).await,
                Http2::PriorKnowledge => self.begin_http2(wire, protected, permit).await,
            };
        };
        let stream = tls.connect(name.clone(), wire).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.pool.note_negotiated(is_http2);
        if is_http2 {
            self.begin_http2(stream, protected, permit).await
        } else {
            self.begin_http1(stream, tracker).await
        }
    }

    async fn begin_http2(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        protected: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<RequestConnection<B>, BoxError> {
        let lane = self.pool.lane(protected);
        let permit = permit.or_else(|| lane.permit());
        let connection =
            Http2Connection::open(stream, lane.freed.clone(), permit, self.pool.age_limit())
                .await?;
        Ok(RequestConnection::Http2(
            self.pool.share(protected, &connection).ok_or("a new connection takes no request")?,
        ))
    }

    async fn begin_http1(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        tracker: Arc<WriteTracker>,
    ) -> Result<RequestConnection<B>, BoxError> {
        let mut builder = http1::Builder::new();
        // A proxy must remove white space between a field's name and its colon in a response (RFC
        // 9112, section 5.1).
        builder
            .max_headers(FIELDS_MAX)
            .max_buf_size(HEAD_MAX)
            .allow_spaces_after_header_name_in_responses(true);
        let (sender, driver) = builder.handshake(TokioIo::new(BoundedReads(stream))).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        Ok(RequestConnection::Http1(Http1Connection::new(
            sender,
            tracker,
            driver.abort_handle(),
            self.pool.age_limit(),
        )))
    }
}

/// Returns the host of an authority, without the brackets of an IPv6 address.
fn unbracketed_host(authority: &Authority) -> &str {
    authority.host().trim_start_matches('[').trim_end_matches(']')
}
