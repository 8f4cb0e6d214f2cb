//! Forwarding, as a service: one request, one connection, sent at most once.
//!
//! Danger: a request that was sent twice is a double charge. It is sent again only where provably no byte of it was
//! written: the connection was closed before the request was taken up, or the upstream refused the stream.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::entropy::{Entropy, EntropyError};
use crate::gate::{BoxError, CloseDelimited, ForwardError, Payload, SendRule, SharedPermit};
use crate::proxy::fields::{self, Peer};
use crate::proxy::outbound::failure::{self, FIELDS_MAX, HEAD_MAX};
use crate::proxy::outbound::location::{self, ClientAddress};
use crate::proxy::outbound::multiplexed::{Multiplexed, SendFailure, StreamSlot};
use crate::proxy::outbound::pool::{Connection, Pool};
use crate::proxy::outbound::race;
use crate::proxy::outbound::upstream_body::{BodySource, UpstreamBody};
use crate::proxy::outbound::wire::{Wire, WriteTracker};
use crate::proxy::paced::Paced;
use crate::proxy::tunnel::{TunnelTerms, tunnel};
use crate::tls::{self, ClientIdentity, TrustError};

/// Where an upstream is and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// To a connection that can be written to, name look-up and TLS included.
    pub connect_timeout: Duration,
    /// How long a pooled connection may be idle.
    pub idle_timeout: Duration,
    /// How old a connection may be to take another request; a little less, at random, for most of them.
    pub max_connection_age: Duration,
    /// When HTTP/2 is spoken.
    pub http2: Http2,
    /// Whether the client's `Host` is kept.
    pub preserve_host: bool,
    /// Certificates to trust instead of the system's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Who the gateway is to an upstream that asks for a certificate.
    pub identity: Option<Arc<ClientIdentity>>,
    /// Whether answers that name the upstream's address get the client's.
    pub rewrite_location: bool,
}

/// When HTTP/2 is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// Where TLS negotiates it.
    Negotiated,
    /// Always, without TLS and without an upgrade (RFC 9113, section 3.3).
    PriorKnowledge,
}

/// An upstream that can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There is nobody to trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The host is no valid name for TLS.
    #[error("`{0}` is not a host name that a certificate can be checked against")]
    Name(String),
    /// There is no randomness for the ages of connections.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// One upstream, with its connections. `B` is the type of bodies that stream through.
pub struct Upstream<B> {
    settings: UpstreamSettings,
    host: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    pool: Pool<Payload<B>>,
}

/// Names the upstream that a request goes to, by index; a request extension. The first where it is absent.
#[derive(Debug, Clone, Copy)]
pub struct Target(pub usize);

/// The service that forwards. Cheap to clone.
pub struct Forward<B>(Arc<[Arc<Upstream<B>>]>);

impl<B> Clone for Forward<B> {
    fn clone(&self) -> Forward<B> {
        Forward(self.0.clone())
    }
}

impl<B> Forward<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Forwards to these upstreams.
    pub fn new(upstreams: impl IntoIterator<Item = Arc<Upstream<B>>>) -> Forward<B> {
        Forward(upstreams.into_iter().collect())
    }
}

impl<B> Service<Request<Payload<B>>> for Forward<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UpstreamBody<B>>;
    type Error = ForwardError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ForwardError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ForwardError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Payload<B>>) -> Self::Future {
        let upstreams = self.0.clone();
        let index = request.extensions().get::<Target>().map_or(0, |target| target.0);
        Box::pin(async move {
            match upstreams.get(index) {
                Some(upstream) => upstream.forward(&mut request).await,
                None => Err(ForwardError::NeverSent("no such upstream is configured".into())),
            }
        })
    }
}

impl<B> Upstream<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Sets an upstream up; connects to nothing yet.
    pub fn new(settings: UpstreamSettings) -> Result<Upstream<B>, UpstreamError> {
        let invalid = || UpstreamError::Name(settings.authority.to_string());
        let host = HeaderValue::from_str(settings.authority.as_str()).map_err(|_| invalid())?;
        let tls = if settings.scheme == Scheme::HTTPS {
            let name =
                settings.authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
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

    /// How it was set up.
    pub fn settings(&self) -> &UpstreamSettings {
        &self.settings
    }

    /// Forwards a request, which is changed where it lies and taken when it is sent.
    async fn forward(
        &self,
        request: &mut Request<Payload<B>>,
    ) -> Result<Response<UpstreamBody<B>>, ForwardError> {
        let original_host = request.headers().get(HOST).cloned().or_else(|| {
            // HTTP/2 carries it in the target.
            request
                .uri()
                .authority()
                .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
        });
        let host = match (&original_host, self.settings.preserve_host) {
            (Some(host), true) => host.clone(),
            _ => self.host.clone(),
        };
        let upgrade = fields::upgrade(request.version(), request.headers());
        let mut extensions = std::mem::take(request.extensions_mut());
        let client =
            upgrade.as_ref().and_then(|_| extensions.remove::<hyper::upgrade::OnUpgrade>());
        let rule = extensions.remove::<Arc<SendRule>>();
        let (terms, permit) =
            (extensions.remove::<TunnelTerms>(), extensions.remove::<SharedPermit>());
        let received = request.version();
        let says_empty = request.body().is_end_stream()
            && fields::announces_empty_body(request.method(), request.headers());
        fields::to_upstream(
            request.headers_mut(),
            host,
            original_host,
            extensions.get::<Peer>(),
            received,
        );
        drop(extensions);
        if says_empty {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let address = if self.settings.rewrite_location {
            ClientAddress::of(request.headers())
        } else {
            None
        };
        if let (Some(protocol), Some(_)) = (upgrade, &client) {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol);
            // It would have to be named in Connection, and a tunnel has no trailers.
            request.headers_mut().remove(TE);
        }
        let target =
            request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let head = request.method() == Method::HEAD;
        let mut response = self.send(request, target, rule).await?;
        failure::of_head(response.version(), response.headers())?;
        let received = response.version();
        // Not the upstream's: to an answer of HTTP/1.0 the client would get no framing that shows a cut.
        *response.version_mut() = Version::HTTP_11;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = response.headers().get(UPGRADE).cloned();
        let bodiless = head || response.status() == StatusCode::NOT_MODIFIED;
        if fields::is_coded(response.headers()) {
            return Err(ForwardError::Broken(
                "its answer has a transfer coding that was not asked for".into(),
            ));
        }
        if self.tls.is_none()
            && received != Version::HTTP_2
            && fields::ends_with_connection(response.headers())
            && !response.body().is_end_stream()
        {
            response.extensions_mut().insert(CloseDelimited);
        }
        fields::from_upstream(response.headers_mut(), bodiless, received);
        if let Some(client) = address {
            location::rewrite(
                response.headers_mut(),
                &self.settings.scheme,
                &self.settings.authority,
                &client,
            );
        }
        if switched {
            let Some(client) = client else {
                return Err(ForwardError::Broken("it switched protocols unasked".into()));
            };
            if let Some((connection, _)) = response.body_mut().lent.take() {
                connection.detach();
            }
            tunnel(client, hyper::upgrade::on(&mut response), terms, permit);
            if let Some(protocol) = protocol {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
                response.headers_mut().insert(UPGRADE, protocol);
            }
        }
        Ok(response)
    }

    /// Sends on a pooled connection or a new one.
    async fn send(
        &self,
        request: &mut Request<Payload<B>>,
        target: PathAndQuery,
        rule: Option<Arc<SendRule>>,
    ) -> Result<Response<UpstreamBody<B>>, ForwardError> {
        loop {
            if let Some(rule) = &rule {
                rule.withhold();
            }
            let (connected, fresh) = match self.pooled(rule.is_some()) {
                Some(pooled) => (pooled, false),
                // Boxed: connecting is rare, and its state would be carried by every request.
                None => Box::pin(self.connect(rule.is_some())).await?,
            };
            let mut connection = match connected {
                Connected::Own(connection) => connection,
                Connected::Shared(slot) => {
                    let sent = self.send_shared(
                        slot,
                        std::mem::take(request),
                        target.clone(),
                        rule.clone(),
                    );
                    match Box::pin(sent).await? {
                        Shared::Answered(response) => return Ok(response),
                        Shared::Closed(unsent) if !fresh => *request = unsent,
                        Shared::Closed(_) => {
                            return Err(ForwardError::NeverSent(
                                "it closed a new connection".into(),
                            ));
                        }
                    }
                    continue;
                }
            };
            if rule.as_ref().is_some_and(|rule| !rule.hand_over()) {
                return Err(ForwardError::TooLate);
            }
            // The rule is checked again with every write; here it spares a connection that nothing was written to.
            if rule.as_ref().is_some_and(|rule| !rule.allows()) {
                self.pool.give_back(connection);
                return Err(ForwardError::TooLate);
            }
            *request.uri_mut() = Uri::from(target.clone());
            *request.version_mut() = Version::HTTP_11;
            connection.carried.begin(rule.clone());
            match connection.sender.try_send_request(std::mem::take(request)).await {
                Ok(response) => {
                    let pool = self.pool.clone();
                    return Ok(response.map(|body| UpstreamBody {
                        body: BodySource::Own(body),
                        lent: Some((connection, pool)),
                    }));
                }
                Err(mut failed) => match failed.take_message() {
                    // The connection closed before it took the request up: nothing of it was written.
                    Some(unsent) if !fresh && !connection.carried.written() => *request = unsent,
                    Some(_) => return Err(ForwardError::NeverSent(failed.error().to_string())),
                    None if connection.carried.written() => {
                        return Err(failure::of_http1(failed.error(), &connection.carried));
                    }
                    None if connection.carried.too_late() => return Err(ForwardError::TooLate),
                    None => return Err(ForwardError::NeverSent(failed.error().to_string())),
                },
            }
        }
    }

    async fn send_shared(
        &self,
        slot: StreamSlot,
        mut request: Request<Payload<B>>,
        target: PathAndQuery,
        rule: Option<Arc<SendRule>>,
    ) -> Result<Shared<B>, ForwardError> {
        // The target carries it, and servers take a second one for an attack; put back where the request has to go elsewhere.
        let host = request.headers_mut().remove(HOST).unwrap_or_else(|| self.host.clone());
        let authority = Authority::try_from(host.as_bytes()).ok();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.settings.scheme.clone());
        uri.authority = authority;
        uri.path_and_query = Some(target);
        *request.uri_mut() =
            Uri::from_parts(uri).map_err(|error| ForwardError::NeverSent(error.to_string()))?;
        *request.version_mut() = Version::HTTP_2;
        if rule.as_ref().is_some_and(|rule| !rule.allows()) {
            return Err(ForwardError::TooLate);
        }
        match slot.send(request, rule).await {
            Ok(response) => Ok(Shared::Answered(
                response.map(|body| UpstreamBody { body: BodySource::Shared(body), lent: None }),
            )),
            Err(SendFailure::Closed(unsent)) => {
                let mut unsent = *unsent;
                unsent.headers_mut().insert(HOST, host);
                Ok(Shared::Closed(unsent))
            }
            Err(SendFailure::Failed(error)) => Err(error),
        }
    }

    /// A connection that stands and takes a request.
    fn pooled(&self, protected: bool) -> Option<Connected<B>> {
        self.pool
            .lane(protected)
            .slot(self.pool.idle_max())
            .map(Connected::Shared)
            .or_else(|| self.pool.take().map(Connected::Own))
    }

    /// A connection, and whether it is new: opens one, and takes a stream slot instead that becomes free before.
    /// Where the upstream speaks HTTP/2 and has as many connections as it may have, it first waits for one of them
    /// to end. `connect_timeout` bounds all of it.
    async fn connect(&self, protected: bool) -> Result<(Connected<B>, bool), ForwardError> {
        let unreachable =
            |error: &dyn std::fmt::Display| ForwardError::NeverSent(error.to_string());
        let connecting = async {
            let lane = self.pool.lane(protected);
            let mut opening = pin!(async {
                let permits = self.pool.expects_multiplexed().then(|| lane.permits.clone());
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
                    opened = &mut opening => return opened.map(|connected| (connected, true)),
                    () = freed => {}
                }
            }
        };
        match tokio::time::timeout(self.settings.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| unreachable(&error)),
            Err(_) => Err(unreachable(&"no connection in time")),
        }
    }

    /// Opens a connection. `permit`: for one that speaks HTTP/2.
    async fn open(
        &self,
        protected: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Connected<B>, BoxError> {
        let default_port = if self.tls.is_some() { 443 } else { 80 };
        let port = self.settings.authority.port_u16().unwrap_or(default_port);
        let host = self.settings.authority.host().trim_start_matches('[').trim_end_matches(']');
        let stream = race::connect(host, port).await?;
        stream.set_nodelay(true)?;
        let carried = Arc::new(WriteTracker::default());
        // Under TLS, where a byte that is counted has left: the layer above may take bytes and fail later.
        let wire = Wire::new(stream, carried.clone());
        let Some((tls, name)) = &self.tls else {
            return match self.settings.http2 {
                Http2::Negotiated => self.shake_hands(wire, carried).await,
                Http2::PriorKnowledge => self.multiplex(wire, protected, permit).await,
            };
        };
        let stream = tls.connect(name.clone(), wire).await?;
        let multiplexed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.pool.note_negotiated(multiplexed);
        if multiplexed {
            self.multiplex(stream, protected, permit).await
        } else {
            self.shake_hands(stream, carried).await
        }
    }

    async fn multiplex(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        protected: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Connected<B>, BoxError> {
        let lane = self.pool.lane(protected);
        let permit = permit.or_else(|| lane.permit());
        let connection =
            Multiplexed::open(stream, lane.freed.clone(), permit, self.pool.age_limit()).await?;
        Ok(Connected::Shared(
            self.pool.share(protected, &connection).ok_or("a new connection takes no request")?,
        ))
    }

    async fn shake_hands(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        carried: Arc<WriteTracker>,
    ) -> Result<Connected<B>, BoxError> {
        let mut builder = http1::Builder::new();
        // A proxy removes white space before the colon of a response's field (RFC 9112, section 5.1).
        builder
            .max_headers(FIELDS_MAX)
            .max_buf_size(HEAD_MAX)
            .allow_spaces_after_header_name_in_responses(true);
        let (sender, driver) = builder.handshake(TokioIo::new(Paced(stream))).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        Ok(Connected::Own(Connection::new(
            sender,
            carried,
            driver.abort_handle(),
            self.pool.age_limit(),
        )))
    }
}

enum Connected<B> {
    Own(Connection<Payload<B>>),
    /// It speaks HTTP/2: a stream slot on it.
    Shared(StreamSlot),
}

/// What became of a request on a shared connection.
enum Shared<B: Send + 'static> {
    Answered(Response<UpstreamBody<B>>),
    /// The connection was closed before it took the request up: nothing of it was written.
    Closed(Request<Payload<B>>),
}
