//! The binary format of records, versioned. A record is a fixed head, which stores compare without
//! decoding, and a payload.
//!
//! Danger: a record that decodes differently than it was written would replay a wrong answer or run
//! a payment twice. So the payload has a checksum over head and content, every length is checked,
//! and extra bytes at the end are an error. A test decodes golden files of every format that was
//! ever written.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;

use self::reader::RecordReader;
use super::{
    AnswerFault, Cause, Fence, Lock, LockPhase, PrivateContent, Publication, Record, Reply,
    ReplyBody, ReviewStage, SagaNote, SagaPhase, Settler, SpanId, State, Version,
};
use crate::key::{Caller, Fingerprint};

mod reader;

/// Bytes of the head: version (8), fence (8), state (1).
pub const HEAD_BYTES: usize = 17;

/// Format of a record without extras. Used wherever possible, so that older versions can read the
/// record.
const FORMAT: u8 = 1;
/// Format of a record with extras. Each extra has a tag and a length, and readers skip unknown
/// tags.
const FORMAT_WITH_EXTRAS: u8 = 2;
/// Format of a completed record with trailers, with or without extras. Trailers are part of the
/// answer, so versions that can't read them must not replay the answer without them.
const FORMAT_WITH_TRAILERS: u8 = 3;
/// Format of an unsettled record with a publication, with or without extras. Versions that can't
/// read the publication must not change the record: they would settle it without its events.
const FORMAT_WITH_PUBLICATION: u8 = 4;

/// Format of a saga or a bar, with or without extras and publication. Versions that don't know
/// these states must refuse the record: they would begin the operation again.
const FORMAT_OF_SAGAS: u8 = 5;

/// Format of a lock, a review or the versions of a resource, with or without extras and
/// publication. Versions that don't know these states must refuse the record: they would send a
/// second write to the resource.
const FORMAT_OF_RESOURCES: u8 = 6;

const EXTRA_LEAVES: u8 = 1;
const EXTRA_SPAN: u8 = 2;
/// The fence of the lost attempt, 8 bytes, if an operator's retry has another fence.
const EXTRA_LOST: u8 = 3;
/// The note for the client of a saga: the mark of the tenant, and the rest is the summary.
const EXTRA_SAGA: u8 = 4;
/// The slot of the resource that the attempt locks.
const EXTRA_RESOURCE: u8 = 5;

const IN_FLIGHT: u8 = 1;
const UNCERTAIN: u8 = 2;
const COMPLETED: u8 = 3;
const RELEASED: u8 = 4;
const EXPIRED: u8 = 5;
const SAGA: u8 = 6;
const BARRED: u8 = 7;
const LOCK: u8 = 8;
const REVIEW: u8 = 9;
const VERSIONS: u8 = 10;
/// Cause of an uncertain record without a parsed answer. The number after it is the answer's fault,
/// or 0.
const BROKEN: u8 = 1;
/// Flag of an uncertain record's cause: an operator has decided that the next duplicate runs.
const RETRY: u8 = 0x80;

/// A stored record is unreadable: it is neither replayed nor run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Another program or a newer version wrote the record.
    #[error("the record has format {0}, which this version doesn't know")]
    Format(u8),
    /// The record is too short, too long, or contains an impossible value.
    #[error("the record is malformed")]
    Malformed,
    /// The checksum doesn't match.
    #[error("the record's checksum doesn't match")]
    Checksum,
    /// The record is sealed with a key that isn't configured, or was tampered with.
    #[error("the record is sealed, and no configured key opens it")]
    Sealed,
}

/// The two parts of an encoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Version, fence and state, which stores compare.
    pub head: [u8; HEAD_BYTES],
    /// Format, checksum and content.
    pub payload: Bytes,
}

/// Returns the version in a head.
pub fn head_version(head: &[u8; HEAD_BYTES]) -> Version {
    Version(head.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Returns the fence in a head.
pub fn head_fence(head: &[u8; HEAD_BYTES]) -> Fence {
    Fence(head.iter().skip(8).take(8).fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Returns whether the head's state is in flight.
pub fn head_in_flight(head: &[u8; HEAD_BYTES]) -> bool {
    head[16] == IN_FLIGHT
}

/// Returns whether the head's state is completed.
pub fn head_completed(head: &[u8; HEAD_BYTES]) -> bool {
    head[16] == COMPLETED
}

/// Returns whether the head's state is a saga.
pub fn head_is_saga(head: &[u8; HEAD_BYTES]) -> bool {
    head[16] == SAGA
}

/// Returns whether the head's state has a lease: an attempt, or the owner of a saga.
pub fn head_has_lease(head: &[u8; HEAD_BYTES]) -> bool {
    head_in_flight(head) || head_is_saga(head)
}

/// Returns whether a record with this head can be so large that stores read it in a call of its
/// own: it has a reply, or the content of a saga, of a review or of versions.
pub fn head_may_be_large(head: &[u8; HEAD_BYTES]) -> bool {
    head_completed(head) || head_is_saga(head) || matches!(head[16], REVIEW | VERSIONS)
}

fn state_byte(state: &State) -> u8 {
    match state {
        State::InFlight { .. } => IN_FLIGHT,
        State::Uncertain { .. } => UNCERTAIN,
        State::Completed { .. } => COMPLETED,
        State::Released => RELEASED,
        State::Expired => EXPIRED,
        State::Saga { .. } => SAGA,
        State::Barred => BARRED,
        State::Lock(_) => LOCK,
        State::Review { .. } => REVIEW,
        State::Versions { .. } => VERSIONS,
    }
}

/// Encodes a record in the oldest format that can contain it.
pub fn encode(record: &Record) -> Encoded {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&record.version.0.to_be_bytes());
    head[8..16].copy_from_slice(&record.fence.0.to_be_bytes());
    head[16] = state_byte(&record.state);
    let mut out = BytesMut::with_capacity(160 + content_size(&record.state));
    let extras = encode_extras(record);
    let format = match &record.state {
        State::Completed { reply, .. } if reply.trailers.is_some() => FORMAT_WITH_TRAILERS,
        State::Saga { .. } | State::Barred => FORMAT_OF_SAGAS,
        State::Lock(_) | State::Review { .. } | State::Versions { .. } => FORMAT_OF_RESOURCES,
        state if state.is_unsettled() && record.publication.is_some() => FORMAT_WITH_PUBLICATION,
        _ if extras.is_empty() => FORMAT,
        _ => FORMAT_WITH_EXTRAS,
    };
    out.put_u8(format);
    out.put_u32(0);
    put_text(&mut out, record.route.as_bytes());
    put_option(&mut out, record.fingerprint.as_ref().map(|f| f.as_bytes().as_slice()));
    put_option(&mut out, record.caller.as_ref().map(|c| c.as_bytes().as_slice()));
    out.put_u64(record.opened_unix_ms);
    if format != FORMAT {
        put_text(&mut out, &extras);
    }
    if let (FORMAT_WITH_PUBLICATION, Some(publication)) = (format, &record.publication) {
        put_publication(&mut out, publication);
    }
    if matches!(format, FORMAT_OF_SAGAS | FORMAT_OF_RESOURCES) {
        match record.publication.as_ref().filter(|_| record.state.is_unsettled()) {
            Some(publication) => put_publication(&mut out, publication),
            None => out.put_u8(0),
        }
    }
    match &record.state {
        State::InFlight { uncertain_since_ms } => put_time(&mut out, *uncertain_since_ms),
        State::Uncertain { cause, since_ms, retry } => {
            put_cause(&mut out, *cause, retry.is_some());
            put_time(&mut out, *since_ms);
        }
        State::Completed { reply, by } => {
            out.put_u8(match by {
                Settler::Upstream => 1,
                Settler::Operator => 2,
                Settler::Probe => 3,
            });
            put_reply(&mut out, reply);
        }
        State::Saga { phase, content } => put_saga(&mut out, *phase, content),
        State::Lock(lock) => put_lock(&mut out, lock),
        State::Review { stage, content } => put_review(&mut out, *stage, content),
        State::Versions { content } => put_content(&mut out, content),
        State::Released | State::Expired | State::Barred => {}
    }
    // The kept key is at the end, and only if present: most records have no kept key.
    if let Some(kept) = &record.kept {
        put_text(&mut out, kept);
    }
    let sum = checksum(&head, format, out.get(5..).unwrap_or_default()).to_be_bytes();
    out[1..5].copy_from_slice(&sum);
    Encoded { head, payload: out.freeze() }
}

/// Returns about the bytes of the reply, or of the content of a saga.
fn content_size(state: &State) -> usize {
    let reply = match state {
        State::Completed { reply, .. } => reply,
        State::Saga {
            content: PrivateContent::Open(text) | PrivateContent::Sealed(text), ..
        } => {
            return text.len();
        }
        _ => return 0,
    };
    let fields = reply.headers.iter().chain(reply.trailers.iter().flatten());
    let fields: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + 8).sum();
    let body = match &reply.body {
        ReplyBody::Whole(body) => body.len(),
        ReplyBody::Sealed(sealed) => sealed.len(),
        ReplyBody::NotStored => 0,
    };
    fields + body
}

/// Returns the checksum over head, format byte and content. It covers the format byte, because
/// damage could turn one format into another. Only format 1 has a checksum without the format byte.
fn checksum(head: &[u8], format: u8, content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    if format != FORMAT {
        crc.update(&[format]);
    }
    crc.update(head);
    crc.update(content);
    crc.finalize()
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text);
}

fn encode_extras(record: &Record) -> BytesMut {
    let extras = &record.extras;
    let mut out = BytesMut::new();
    if let Some(leaves) = &extras.leaves {
        out.put_u8(EXTRA_LEAVES);
        put_text(&mut out, leaves);
    }
    if let Some(SpanId { trace, span }) = &extras.span {
        out.put_u8(EXTRA_SPAN);
        put_text(&mut out, &[&trace[..], span].concat());
    }
    if let Some(SagaNote { tenant_mark, summary }) = &extras.saga {
        let mut note = BytesMut::new();
        put_text(&mut note, tenant_mark.as_bytes());
        note.put_slice(summary);
        out.put_u8(EXTRA_SAGA);
        put_text(&mut out, &note);
    }
    if let Some(resource) = &extras.resource {
        out.put_u8(EXTRA_RESOURCE);
        put_text(&mut out, resource.hash());
    }
    if let State::Uncertain { retry: Some(lost), .. } = record.state
        && lost != record.fence
    {
        out.put_u8(EXTRA_LOST);
        put_text(&mut out, &lost.0.to_be_bytes());
    }
    out
}

fn put_publication(out: &mut BytesMut, publication: &Publication) {
    match publication {
        Publication::Open(announcements) => {
            out.put_u8(1);
            put_text(out, &announcements.encode());
        }
        Publication::Sealed(sealed) => {
            out.put_u8(2);
            put_text(out, sealed);
        }
    }
}

fn put_cause(out: &mut BytesMut, cause: Cause, is_retried: bool) {
    let (tag, status) = match cause {
        Cause::Broken => (BROKEN, 0),
        // Versions without faults skip the number.
        Cause::Unreadable(AnswerFault::TooManyFields) => (BROKEN, 1),
        Cause::Unreadable(AnswerFault::HeadTooLarge) => (BROKEN, 2),
        Cause::Unreadable(AnswerFault::Malformed) => (BROKEN, 3),
        Cause::TimedOut => (2, 0),
        Cause::Status(status) => (3, status),
        Cause::LeaseEnded => (4, 0),
        Cause::Stopped => (5, 0),
        Cause::NotRepeated => (6, 0),
    };
    out.put_u8(if is_retried { tag | RETRY } else { tag });
    out.put_u16(status);
}

fn put_saga(out: &mut BytesMut, phase: SagaPhase, content: &PrivateContent) {
    out.put_u8(match phase {
        SagaPhase::Running => 1,
        SagaPhase::Compensating => 2,
        SagaPhase::Stuck => 3,
    });
    put_content(out, content);
}

fn put_review(out: &mut BytesMut, stage: ReviewStage, content: &PrivateContent) {
    out.put_u8(match stage {
        ReviewStage::Pending => 1,
        ReviewStage::Accepted => 2,
        ReviewStage::Rejected => 3,
    });
    put_content(out, content);
}

fn put_lock(out: &mut BytesMut, lock: &Lock) {
    out.put_u8(match lock.phase {
        LockPhase::Free => 1,
        LockPhase::Looking => 2,
        LockPhase::Sent => 3,
    });
    out.put_u64(lock.rest_ms);
    put_text(out, lock.operation.hash());
}

fn put_content(out: &mut BytesMut, content: &PrivateContent) {
    let (tag, text) = match content {
        PrivateContent::Open(text) => (1, text),
        PrivateContent::Sealed(sealed) => (2, sealed),
    };
    out.put_u8(tag);
    put_text(out, text);
}

fn put_option(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            out.put_u8(1);
            out.put_slice(bytes);
        }
        None => out.put_u8(0),
    }
}

fn put_time(out: &mut BytesMut, time_ms: Option<u64>) {
    out.put_u64(time_ms.unwrap_or(0));
}

fn put_reply(out: &mut BytesMut, reply: &Reply) {
    out.put_u16(reply.status.as_u16());
    put_fields(out, &reply.headers);
    // The trailers are before the body, because the body has no length of its own.
    if let Some(trailers) = &reply.trailers {
        put_fields(out, trailers);
    }
    match &reply.body {
        ReplyBody::Whole(body) => {
            out.put_u8(1);
            out.put_slice(body);
        }
        ReplyBody::NotStored => out.put_u8(0),
        ReplyBody::Sealed(sealed) => {
            out.put_u8(2);
            out.put_slice(sealed);
        }
    }
}

fn put_fields(out: &mut BytesMut, fields: &HeaderMap) {
    out.put_u32(u32::try_from(fields.len()).unwrap_or(u32::MAX));
    for (name, value) in fields {
        put_text(out, name.as_str().as_bytes());
        put_text(out, value.as_bytes());
    }
}

/// Encodes a reply without its record, in the format of records. The caller must remember whether
/// it has trailers.
pub fn encode_reply(reply: &Reply) -> Bytes {
    let mut out = BytesMut::new();
    put_reply(&mut out, reply);
    out.freeze()
}

/// Decodes the output of [`encode_reply`]. The body shares its memory.
///
/// # Errors
/// See [`CodecError::Malformed`].
pub fn decode_reply(text: Bytes, has_trailers: bool) -> Result<Reply, CodecError> {
    let mut rest = RecordReader(text);
    let reply = rest.reply(has_trailers)?;
    if rest.0.is_empty() { Ok(reply) } else { Err(CodecError::Malformed) }
}

/// Decodes a record of any format that was ever written. The body shares the payload's memory.
pub fn decode(head: &[u8; HEAD_BYTES], payload: Bytes) -> Result<Record, CodecError> {
    let mut rest = RecordReader(payload);
    let format = rest.u8()?;
    if !(FORMAT..=FORMAT_OF_RESOURCES).contains(&format) {
        return Err(CodecError::Format(format));
    }
    if rest.u32()? != checksum(head, format, &rest.0) {
        return Err(CodecError::Checksum);
    }
    let route = rest.string()?;
    let fingerprint = rest.option()?.map(Fingerprint::from_bytes);
    let caller = rest.option()?.map(Caller::from_bytes);
    let opened_unix_ms = rest.u64()?;
    let (extras, lost) =
        if format == FORMAT { Default::default() } else { RecordReader(rest.text()?).extras()? };
    let publication = match format {
        FORMAT_WITH_PUBLICATION => Some(rest.publication()?),
        FORMAT_OF_SAGAS | FORMAT_OF_RESOURCES => rest.optional_publication()?,
        _ => None,
    };
    let has_trailers = format == FORMAT_WITH_TRAILERS;
    let is_of_sagas = matches!(head[16], SAGA | BARRED) == (format == FORMAT_OF_SAGAS);
    let is_of_resources =
        matches!(head[16], LOCK | REVIEW | VERSIONS) == (format == FORMAT_OF_RESOURCES);
    let state = match head[16] {
        _ if !(is_of_sagas && is_of_resources) => return Err(CodecError::Malformed),
        _ if has_trailers && !head_completed(head) => return Err(CodecError::Malformed),
        RELEASED | EXPIRED | COMPLETED | BARRED | LOCK | VERSIONS if publication.is_some() => {
            return Err(CodecError::Malformed);
        }
        IN_FLIGHT => State::InFlight { uncertain_since_ms: rest.time()? },
        UNCERTAIN => {
            let (tag, status) = (rest.u8()?, rest.u16()?);
            let cause = decode_cause(tag & !RETRY, status)?;
            // Earlier versions wrote a retry under the fence of the lost attempt.
            let retry = (tag & RETRY != 0).then(|| lost.unwrap_or(head_fence(head)));
            State::Uncertain { cause, since_ms: rest.time()?, retry }
        }
        COMPLETED => {
            let by = rest.settler()?;
            State::Completed { reply: Arc::new(rest.reply(has_trailers)?), by }
        }
        RELEASED => State::Released,
        EXPIRED => State::Expired,
        SAGA => rest.saga()?,
        BARRED => State::Barred,
        LOCK => State::Lock(rest.lock()?),
        REVIEW => State::Review { stage: rest.review_stage()?, content: rest.content()? },
        VERSIONS => State::Versions { content: rest.content()? },
        _ => return Err(CodecError::Malformed),
    };
    let kept = if rest.0.is_empty() { None } else { Some(rest.text()?) };
    if !rest.0.is_empty() {
        return Err(CodecError::Malformed);
    }
    Ok(Record {
        version: head_version(head),
        fence: head_fence(head),
        route,
        fingerprint,
        caller,
        opened_unix_ms,
        kept,
        publication,
        extras,
        state,
    })
}

fn decode_cause(tag: u8, status: u16) -> Result<Cause, CodecError> {
    Ok(match tag {
        BROKEN => match status {
            1 => Cause::Unreadable(AnswerFault::TooManyFields),
            2 => Cause::Unreadable(AnswerFault::HeadTooLarge),
            3 => Cause::Unreadable(AnswerFault::Malformed),
            _ => Cause::Broken,
        },
        2 => Cause::TimedOut,
        3 => Cause::Status(status),
        4 => Cause::LeaseEnded,
        5 => Cause::Stopped,
        6 => Cause::NotRepeated,
        _ => return Err(CodecError::Malformed),
    })
}

#[cfg(test)]
mod tests;
