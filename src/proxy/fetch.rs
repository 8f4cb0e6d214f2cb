//! Getting a small document, such as a set of keys, in the way that requests are forwarded.

use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tower_service::Service;

use super::forward::Forward;
use crate::gate::{ForwardError, Payload};

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not be asked for.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// It is not there. Nothing is followed: whom to believe is configured.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// It broke off, or is too large.
    #[error("the document is not whole, or larger than {limit} bytes")]
    Body {
        /// The limit.
        limit: usize,
    },
    /// It took too long.
    #[error("the document did not come in time")]
    TimedOut,
}

/// Gets a document of at most `limit` bytes, in at most `within`.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch(from: &Forward<Incoming>, path: &PathAndQuery, limit: usize, within: Duration) -> Result<Bytes, FetchError> {
    let mut request = Request::new(Payload::default());
    *request.uri_mut() = Uri::from(path.clone());
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
    let asking = async {
        let response = from.clone().call(request).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(|_| FetchError::Body { limit })?;
        Ok(body.to_bytes())
    };
    tokio::time::timeout(within, asking).await.unwrap_or(Err(FetchError::TimedOut))
}
