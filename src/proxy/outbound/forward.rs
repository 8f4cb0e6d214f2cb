//! The service that forwards: each request goes to one upstream, on one connection, at most once.
//!
//! Danger: a request that is sent twice is a double charge. The service sends a request again only
//! if provably no byte of it was written: the connection closed before it took the request, or the
//! upstream refused the stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, UPGRADE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::upgrade::OnUpgrade;
use tower_service::Service;

use crate::forwarding::{BoxError, ForwardError, UpstreamIndex};
use crate::gate::{CloseDelimited, Payload, SendRule, SharedPermit};
use crate::proxy::fields::{self, Peer};
use crate::proxy::outbound::failure;
use crate::proxy::outbound::location::{self, ClientAddress};
use crate::proxy::outbound::multiplexed::{SendFailure, StreamSlot};
use crate::proxy::outbound::pool::Http1Connection;
use crate::proxy::outbound::upstream::{RequestConnection, Upstream};
use crate::proxy::outbound::upstream_body::{BodySource, UpstreamBody};
use crate::proxy::tunnel::{TunnelTerms, tunnel};

/// The service that forwards requests to upstreams. It is cheap to clone.
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
        let UpstreamIndex(index) = request.extensions().get().copied().unwrap_or_default();
        Box::pin(async move {
            match upstreams.get(index) {
                Some(upstream) => upstream.forward(&mut request).await,
                None => Err(ForwardError::NeverSent("no such upstream is configured".into())),
            }
        })
    }
}

/// Facts that are removed from the head of a request, and are needed to send it and to prepare its
/// answer.
struct ForwardContext {
    target: PathAndQuery,
    rule: Option<Arc<SendRule>>,
    is_head: bool,
    /// The address that the client used. `Some` if `Location` fields are rewritten.
    client_address: Option<ClientAddress>,
    /// The client's side of the connection, if the client requested a switch of protocols.
    client_upgrade: Option<OnUpgrade>,
    terms: Option<TunnelTerms>,
    permit: Option<SharedPermit>,
}

/// The result of sending a request on one connection.
enum SendResult<B: Send + 'static> {
    Answered(Response<UpstreamBody<B>>),
    /// The connection closed before it took the request. No byte of the request was written, and
    /// the caller still has the request. The text names the error.
    NotTaken(String),
}

impl<B> Upstream<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Forwards a request. Changes the request in place, and takes it out of the option when it is
    /// sent.
    async fn forward(
        &self,
        request: &mut Request<Payload<B>>,
    ) -> Result<Response<UpstreamBody<B>>, ForwardError> {
        let mut context = self.prepare_request(request);
        let rule = context.rule.take();
        let mut response = self.send(request, &context.target, rule.as_ref()).await?;
        self.prepare_response(&mut response, context)?;
        Ok(response)
    }

    /// Changes the head of a request into the one that the upstream gets.
    fn prepare_request(&self, request: &mut Request<Payload<B>>) -> ForwardContext {
        let original_host = request.headers().get(HOST).cloned().or_else(|| {
            // HTTP/2 requests have the host in their target.
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
        let client_upgrade = upgrade.as_ref().and_then(|_| extensions.remove::<OnUpgrade>());
        let rule = extensions.remove::<Arc<SendRule>>();
        let (terms, permit) =
            (extensions.remove::<TunnelTerms>(), extensions.remove::<SharedPermit>());
        let received = request.version();
        let announces_empty = request.body().is_end_stream()
            && fields::announces_empty_body(request.method(), request.headers());
        fields::to_upstream(
            request.headers_mut(),
            host,
            original_host,
            extensions.get::<Peer>(),
            received,
        );
        drop(extensions);
        if announces_empty {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let client_address = if self.settings.rewrite_location {
            ClientAddress::of(request.headers())
        } else {
            None
        };
        if let (Some(protocol), Some(_)) = (upgrade, &client_upgrade) {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol);
            // A tunnel has no trailers, and with `TE` the `Connection` field would have to name it
            // too.
            request.headers_mut().remove(TE);
        }
        let target =
            request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let is_head = request.method() == Method::HEAD;
        ForwardContext { target, rule, is_head, client_address, client_upgrade, terms, permit }
    }

    /// Changes the head of an answer into the one that the client gets, and joins both sides if the
    /// upstream switched protocols.
    ///
    /// # Errors
    /// The answer has a fault, so it must not be used.
    fn prepare_response(
        &self,
        response: &mut Response<UpstreamBody<B>>,
        context: ForwardContext,
    ) -> Result<(), ForwardError> {
        failure::of_head(response.version(), response.headers())?;
        let received = response.version();
        // The upstream's version is not passed on: an HTTP/1.0 answer would have no framing that
        // shows the client that a body is truncated.
        *response.version_mut() = Version::HTTP_11;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = response.headers().get(UPGRADE).cloned();
        let bodiless = context.is_head || response.status() == StatusCode::NOT_MODIFIED;
        if fields::is_coded(response.headers()) {
            return Err(ForwardError::Broken(
                "its answer has a transfer coding that was not requested".into(),
            ));
        }
        if !self.uses_tls()
            && received != Version::HTTP_2
            && fields::ends_with_connection(response.headers())
            && !response.body().is_end_stream()
        {
            response.extensions_mut().insert(CloseDelimited);
        }
        fields::from_upstream(response.headers_mut(), bodiless, received);
        if let Some(client) = context.client_address {
            location::rewrite(
                response.headers_mut(),
                &self.settings.scheme,
                &self.settings.authority,
                &client,
            );
        }
        if switched {
            let Some(client) = context.client_upgrade else {
                return Err(ForwardError::Broken("it switched protocols without a request".into()));
            };
            if let Some((connection, _)) = response.body_mut().borrowed.take() {
                connection.detach();
            }
            tunnel(client, hyper::upgrade::on(&mut *response), context.terms, context.permit);
            if let Some(protocol) = protocol {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
                response.headers_mut().insert(UPGRADE, protocol);
            }
        }
        Ok(())
    }

    /// Sends a request on a pooled connection or a new one.
    async fn send(
        &self,
        request: &mut Request<Payload<B>>,
        target: &PathAndQuery,
        rule: Option<&Arc<SendRule>>,
    ) -> Result<Response<UpstreamBody<B>>, ForwardError> {
        loop {
            if let Some(rule) = rule {
                rule.withhold();
            }
            let (connection, is_new) = match self.pooled(rule.is_some()) {
                Some(pooled) => (pooled, false),
                // Boxed, because connecting is rare. Otherwise the future of every request would
                // include the state of connecting.
                None => Box::pin(self.connect(rule.is_some())).await?,
            };
            let result = match connection {
                RequestConnection::Http1(connection) => {
                    self.send_http1(connection, request, target, rule).await?
                }
                RequestConnection::Http2(slot) => {
                    Box::pin(self.send_http2(slot, request, target, rule)).await?
                }
            };
            match result {
                SendResult::Answered(response) => return Ok(response),
                SendResult::NotTaken(_) if !is_new => {}
                SendResult::NotTaken(error) => return Err(ForwardError::NeverSent(error)),
            }
        }
    }

    async fn send_http1(
        &self,
        mut connection: Http1Connection<Payload<B>>,
        request: &mut Request<Payload<B>>,
        target: &PathAndQuery,
        rule: Option<&Arc<SendRule>>,
    ) -> Result<SendResult<B>, ForwardError> {
        if rule.is_some_and(|rule| !rule.hand_over()) {
            return Err(ForwardError::TooLate);
        }
        // Every write checks the rule again. This early check keeps the connection usable, because
        // nothing was written to it.
        if rule.is_some_and(|rule| !rule.allows()) {
            self.pool.give_back(connection);
            return Err(ForwardError::TooLate);
        }
        *request.uri_mut() = Uri::from(target.clone());
        *request.version_mut() = Version::HTTP_11;
        connection.tracker.begin(rule.cloned());
        let mut failed = match connection.sender.try_send_request(std::mem::take(request)).await {
            Ok(response) => {
                let borrowed = Some((connection, self.pool.clone()));
                let body = |body| UpstreamBody { body: BodySource::Http1(body), borrowed };
                return Ok(SendResult::Answered(response.map(body)));
            }
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let error = failed.error();
        match unsent {
            // The connection closed before it took the request: no byte of the request was written.
            Some(unsent) if !connection.tracker.written() => {
                *request = unsent;
                Ok(SendResult::NotTaken(error.to_string()))
            }
            None if connection.tracker.written() => {
                Err(failure::of_http1(error, &connection.tracker))
            }
            None if connection.tracker.too_late() => Err(ForwardError::TooLate),
            Some(_) | None => Err(ForwardError::NeverSent(error.to_string())),
        }
    }

    async fn send_http2(
        &self,
        slot: StreamSlot,
        request: &mut Request<Payload<B>>,
        target: &PathAndQuery,
        rule: Option<&Arc<SendRule>>,
    ) -> Result<SendResult<B>, ForwardError> {
        // The target already has the host, and servers treat a second one as an attack. The field
        // is put back if the request has to be sent on another connection.
        let host = request.headers_mut().remove(HOST).unwrap_or_else(|| self.host.clone());
        let authority = Authority::try_from(host.as_bytes()).ok();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.settings.scheme.clone());
        uri.authority = authority;
        uri.path_and_query = Some(target.clone());
        *request.uri_mut() =
            Uri::from_parts(uri).map_err(|error| ForwardError::NeverSent(error.to_string()))?;
        *request.version_mut() = Version::HTTP_2;
        if rule.is_some_and(|rule| !rule.allows()) {
            return Err(ForwardError::TooLate);
        }
        match slot.send(std::mem::take(request), rule.cloned()).await {
            Ok(response) => {
                let body = |body| UpstreamBody { body: BodySource::Http2(body), borrowed: None };
                Ok(SendResult::Answered(response.map(body)))
            }
            Err(SendFailure::Closed(unsent)) => {
                *request = *unsent;
                request.headers_mut().insert(HOST, host);
                Ok(SendResult::NotTaken("it closed a new connection".into()))
            }
            Err(SendFailure::Failed(error)) => Err(error),
        }
    }
}
