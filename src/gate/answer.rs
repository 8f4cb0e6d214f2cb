//! Answers: the settled outcome of a request, and the HTTP response that a client gets for it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::budget::Hold;
use super::payload::AnswerBody;
use crate::key::Slot;
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::telemetry::Answer;

/// The field that marks a replay.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A response, and its outcome for metrics and logs.
pub struct Answered<B> {
    /// The response.
    pub response: Response<AnswerBody<B>>,
    /// The outcome.
    pub answer: Answer,
}

/// The header fields and the trailers of an answer.
pub(in crate::gate) type Fields = (HeaderMap, Option<HeaderMap>);

/// The settled answer to a protected request, before it becomes a response.
pub(in crate::gate) struct SettledAnswer<B> {
    pub slot: Slot,
    pub answer: Answer,
    /// The reply as it is stored. If the status releases the operation, no reply is stored, and
    /// this is the upstream's answer.
    pub reply: Arc<Reply>,
    /// All fields of the upstream's answer, if some of them are only for the first client.
    pub first_fields: Option<Box<Fields>>,
    /// The body of the upstream's answer, if the reply does not contain it.
    pub body: Option<AnswerBody<B>>,
    /// The memory of the bodies.
    pub hold: Hold,
}

impl<B> SettledAnswer<B> {
    /// Creates the answer to a duplicate.
    pub fn replayed(slot: Slot, reply: Arc<Reply>, hold: Hold) -> SettledAnswer<B> {
        let answer = Answer::Replayed;
        SettledAnswer { slot, answer, reply, first_fields: None, body: None, hold }
    }

    /// Converts the answer into the client's response.
    ///
    /// # Errors
    /// The stored reply has no body, or no memory is left for a replay.
    pub fn into_response(self) -> Result<Answered<B>, Refusal> {
        let SettledAnswer { slot, answer, reply, first_fields, body, hold } = self;
        if answer == Answer::Replayed {
            return replay(slot, reply, hold);
        }
        let reply = Arc::unwrap_or_clone(reply);
        let (headers, trailers) = match first_fields {
            Some(fields) => *fields,
            None => (reply.headers, reply.trailers),
        };
        let stored = match reply.body {
            ReplyBody::Whole(bytes) => AnswerBody::whole(bytes).with_trailers(trailers),
            ReplyBody::NotStored | ReplyBody::Sealed(_) => AnswerBody::whole(Bytes::new()),
        };
        let mut response = Response::new(body.unwrap_or(stored).holding(hold));
        *response.status_mut() = reply.status;
        *response.headers_mut() = headers;
        Ok(Answered { response, answer })
    }
}

fn replay<B>(slot: Slot, reply: Arc<Reply>, mut hold: Hold) -> Result<Answered<B>, Refusal> {
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
