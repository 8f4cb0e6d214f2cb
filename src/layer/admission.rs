//! The way in for requests that pass through without protection: each takes a place among the requests in flight.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body::Body;

use crate::gate::{AddressShare, Gate, Refusal, SharedPermit};
use crate::proxy::discard;

/// Takes a place for a request that passes through. Where there is none the request's body is thrown away, so that the
/// client reads its refusal.
///
/// # Errors
/// [`Refusal::Overloaded`].
pub(super) fn admit<B>(
    gate: &Gate,
    address: Option<&Arc<AddressShare>>,
    mut request: Request<B>,
) -> Result<(Request<B>, SharedPermit), Refusal>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    match gate.admit_passing(address, !request.body().is_end_stream()) {
        Ok(permit) => {
            permit.accompany(&mut request);
            Ok((request, permit))
        }
        Err(problem) => {
            discard(request.into_body());
            Err(problem)
        }
    }
}
