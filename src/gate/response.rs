//! The upstream's response: prepares its fields for storing and reads its body up to the limit.

use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use super::answer::IDEMPOTENT_REPLAYED;
use super::budget::Hold;
use super::payload::AnswerBody;
use super::state::Gate;
use super::trailers::{prepare_trailers, trailer_bytes};
use crate::engine::is_grpc;
use crate::record::Reply;

/// A response body, as far as the gate has read it.
pub(in crate::gate) enum ReceivedBody<B> {
    /// The whole body, and the trailers of a gRPC answer.
    Whole(Bytes, Option<HeaderMap>),
    /// A body that is too large to store or has no end: it streams through.
    Streams(AnswerBody<B>),
    /// The body broke off.
    Broken,
}

impl Gate {
    /// Prepares the fields of a response that is relayed and stored: removes a replay mark that the
    /// upstream set, and adds a missing `Date`.
    pub(in crate::gate) fn prepare_fields(&self, headers: &mut HeaderMap) {
        headers.remove(IDEMPOTENT_REPLAYED);
        if !headers.contains_key(DATE) {
            let now = UNIX_EPOCH + Duration::from_millis(self.clock.unix_ms());
            if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
                headers.insert(DATE, date);
            }
        }
    }

    /// Reads a response body, if it can be stored. Other bodies are left to be streamed.
    pub(in crate::gate) async fn read_body<RB>(
        &self,
        reply: &Reply,
        mut body: RB,
        hold: &mut Hold,
    ) -> ReceivedBody<RB>
    where
        RB: Body<Data = Bytes> + Unpin,
    {
        let limit = self.settings.response_body;
        let announced = body.size_hint().lower();
        if reply.status == StatusCode::SWITCHING_PROTOCOLS
            || is_event_stream(&reply.headers)
            || announced > limit as u64
        {
            return ReceivedBody::Streams(AnswerBody::stream(body));
        }
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return ReceivedBody::Broken };
            let data = match frame.into_data() {
                Ok(data) => data,
                // Trailers of other answers are dropped. These answers mean the same without
                // trailers, and every version can read records without trailers.
                Err(frame) => {
                    if let (Ok(found), true) = (frame.into_trailers(), is_grpc(&reply.headers)) {
                        let Some(bytes) = trailer_bytes(&found) else {
                            return ReceivedBody::Broken;
                        };
                        hold.overdraw(bytes);
                        trailers = prepare_trailers(found);
                    }
                    continue;
                }
            };
            let length = first.as_ref().map_or(0, Bytes::len) + rest.len();
            let fits = length + data.len() <= limit;
            // The budget may be overdrawn here, because an answer that is not stored can't be
            // replayed. New requests are refused until memory is free again.
            if fits {
                hold.overdraw(data.len());
            }
            // Most bodies come in one piece, which is kept without a copy.
            match &first {
                None if !data.is_empty() => first = Some(data),
                None => {}
                Some(_) => rest.extend_from_slice(&data),
            }
            if !fits {
                return ReceivedBody::Streams(AnswerBody::continued(join(first, rest), body));
            }
        }
        ReceivedBody::Whole(join(first, rest), trailers)
    }
}

/// Joins the pieces of a body.
pub(in crate::gate) fn join(first: Option<Bytes>, rest: BytesMut) -> Bytes {
    match first {
        None => Bytes::new(),
        Some(first) if rest.is_empty() => first,
        Some(first) => [first, rest.freeze()].concat().into(),
    }
}

/// Returns whether an answer is a stream of events, which has no end.
pub(in crate::gate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream")
    })
}
