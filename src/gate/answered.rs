//! Answers of the gate, and replays of stored ones.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Response};

use crate::gate::budget::Hold;
use crate::gate::payload::AnswerBody;
use crate::key::Slot;
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::telemetry::Answer;

/// The field that marks a replay.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// An answer, and how it is counted.
pub struct Answered<B> {
    /// The response.
    pub response: Response<AnswerBody<B>>,
    /// How it came about.
    pub answer: Answer,
}

/// Builds the replay of a stored reply.
///
/// # Errors
/// The reply's body is not stored, or the common buffers have no room for it.
pub(super) fn replay<RB>(
    slot: Slot,
    reply: Arc<Reply>,
    mut hold: Hold,
) -> Result<Answered<RB>, Refusal> {
    let reply = Arc::unwrap_or_clone(reply);
    let ReplyBody::Whole(body) = reply.body else {
        return Err(Refusal::ResponseNotStored { slot, status: reply.status.as_u16() });
    };
    if !hold.grow(body.len()) {
        return Err(Refusal::Overloaded);
    }
    let mut response =
        Response::new(AnswerBody::whole(body).with_trailers(reply.trailers).holding(hold));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    Ok(Answered { response, answer: Answer::Replayed })
}
