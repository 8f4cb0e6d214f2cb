//! Requests that pass through without protection. Each request takes a permit of the limit for
//! requests in flight, and its body is streamed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Body;
use tokio::time::sleep;

use super::LayerState;
use crate::forwarding::ForwardError;
use crate::gate::{
    AddressShare, AnswerBody, Answered, Gate, Hold, Movement, Payload, RequestContext,
    SharedPermit, Stream, UpstreamService,
};
use crate::http_message::discard;
use crate::refusal::Refusal;
use crate::telemetry::{Answer, Trail, Work};

/// A copy of a body that streams through.
pub(super) struct BodyCopy {
    /// Largest body that is copied, in bytes.
    pub limit: usize,
    /// The memory that the copy takes.
    pub hold: Hold,
    /// Called at the end of the body, with the copy or with `None` if no copy was made.
    pub done: Box<dyn FnOnce(Option<Bytes>, Hold) + Send>,
}

impl LayerState {
    /// Streams a request through, whatever its size. The request fails if neither side sends
    /// anything for the duration `silence`.
    pub(super) async fn pass<S, B>(
        &self,
        request: Request<B>,
        context: &RequestContext,
        mut inner: S,
        copy: Option<BodyCopy>,
        silence: Duration,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (request, permit) = admit(&self.gate, context.address_share.as_ref(), request)?;
        let mut step = Trail::step(context.trail.as_ref(), Work::Forward);
        let idempotent = request.method().is_idempotent();
        let movement = (!request.body().is_end_stream()).then(Movement::begin);
        let request = request.map(|body| {
            let mut stream = Stream::new(body);
            if let Some(movement) = &movement {
                stream = stream.noting(movement.clone());
            }
            if let Some(BodyCopy { limit, hold, done }) = copy {
                stream = stream.copying(limit, hold, done);
            }
            Payload::Stream(stream)
        });
        let sent = async {
            std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
            inner.call(request).await
        };
        let silent = async {
            match &movement {
                Some(movement) => movement.ceased(silence).await,
                None => sleep(silence).await,
            }
        };
        let sent = tokio::select! {
            biased;
            sent = sent => sent.map_err(|error| ForwardError::of(error.into())),
            () = silent => Err(ForwardError::TimedOut),
        };
        match sent {
            Ok(response) => {
                step.answered(response.status().as_u16());
                let response = response.map(|body| AnswerBody::stream(body).keeping(permit));
                Ok(Answered { response, answer: Answer::Passed })
            }
            Err(error) => {
                step.result("failed");
                Err(error.unprotected(idempotent))
            }
        }
    }
}

/// Takes a permit of the limit for requests in flight. If no permit is free, the request's body is
/// discarded, so that the client can read its refusal.
///
/// # Errors
/// [`Refusal::Overloaded`].
fn admit<B>(
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
        Err(refusal) => {
            discard(request.into_body());
            Err(refusal)
        }
    }
}
