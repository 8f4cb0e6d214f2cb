//! Gets or posts a small document, such as a set of keys, through a [`Forward`] service.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use tower_service::Service;

use crate::forwarding::{BoxError, ForwardError};
use crate::gate::Payload;
use crate::proxy::outbound::forward::Forward;

/// The reason why a document could not be fetched or posted.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The request failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The status is not a success. Redirects are not followed, because trust is configured per
    /// address.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// The connection broke, or the document is too large.
    #[error("the document is incomplete, or larger than {limit} bytes")]
    Body {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The exchange took too long.
    #[error("the document did not arrive in time")]
    TimedOut,
}

/// Gets a document of at most `limit` bytes. Fails after `within`.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch<B>(
    from: &Forward<B>,
    path: &PathAndQuery,
    limit: usize,
    within: Duration,
) -> Result<Bytes, FetchError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let mut request = Request::new(Payload::default());
    *request.uri_mut() = Uri::from(path.clone());
    request
        .headers_mut()
        .insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
    let exchange = async {
        let response = from.clone().call(request).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), limit)
            .collect()
            .await
            .map_err(|_| FetchError::Body { limit })?;
        Ok(body.to_bytes())
    };
    tokio::time::timeout(within, exchange).await.unwrap_or(Err(FetchError::TimedOut))
}

/// How much of the answer to a post is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Posts a JSON document with these header fields. Fails after `within`.
///
/// # Errors
/// See [`FetchError`].
pub async fn post<B>(
    to: &Forward<B>,
    path: &PathAndQuery,
    headers: &HeaderMap,
    body: Bytes,
    within: Duration,
) -> Result<(), FetchError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let mut request = Request::new(Payload::whole(body, None));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from(path.clone());
    *request.headers_mut() = headers.clone();
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let exchange = async {
        let response = to.clone().call(request).await?;
        let status = response.status();
        // The answer is read to its end, so that the connection can be used again.
        let rest = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        rest.map_err(|_| FetchError::Body { limit: ANSWER_BYTES_MAX })?;
        if status.is_success() { Ok(()) } else { Err(FetchError::Status(status)) }
    };
    tokio::time::timeout(within, exchange).await.unwrap_or(Err(FetchError::TimedOut))
}
