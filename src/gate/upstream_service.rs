//! The services to which a gate can forward requests.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::forwarding::BoxError;
use crate::gate::payload::Payload;

/// A service that executes requests or forwards them to an upstream.
///
/// Implemented for every tower service with these request and response types. `B` is the type of
/// request bodies that stream through.
pub trait UpstreamService<B>:
    Service<
        Request<Payload<B>>,
        Response = Response<<Self as UpstreamService<B>>::ResponseBody>,
        Error: Into<BoxError>,
        Future: Send,
    > + Send
    + 'static
{
    /// The body of its responses.
    type ResponseBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;
}

impl<S, B, RB> UpstreamService<B> for S
where
    S: Service<Request<Payload<B>>, Response = Response<RB>> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    RB: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type ResponseBody = RB;
}
