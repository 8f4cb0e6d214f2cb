//! Reads the parts of a payload. Every length is checked before its bytes are read.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{CodecError, EXTRA_LEAVES, EXTRA_LOST, EXTRA_RESOURCE, EXTRA_SAGA, EXTRA_SPAN};
use crate::key::{Slot, Space};
use crate::record::{
    Announcements, Extras, Fence, Lock, LockPhase, PrivateContent, Publication, Reply, ReplyBody,
    ReviewStage, SagaNote, SagaPhase, Settler, SpanId, State,
};

fn span(content: &[u8]) -> Result<SpanId, CodecError> {
    let malformed = |_| CodecError::Malformed;
    let (trace, span) = content.split_at_checked(16).ok_or(CodecError::Malformed)?;
    Ok(SpanId {
        trace: trace.try_into().map_err(malformed)?,
        span: span.try_into().map_err(malformed)?,
    })
}

/// Returns the slot with these bytes. Locks are only in the space of enforcing routes.
fn slot(bytes: &[u8]) -> Result<Slot, CodecError> {
    let bytes = bytes.try_into().map_err(|_| CodecError::Malformed)?;
    Ok(Slot::from_hash(Space::Enforced, bytes))
}

/// The rest of a payload.
pub(super) struct RecordReader(pub(super) Bytes);

impl RecordReader {
    fn need(&self, bytes: usize) -> Result<(), CodecError> {
        if self.0.len() < bytes { Err(CodecError::Malformed) } else { Ok(()) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        self.need(2)?;
        Ok(self.0.get_u16())
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        self.need(8)?;
        Ok(self.0.get_u64())
    }

    pub(super) fn time(&mut self) -> Result<Option<u64>, CodecError> {
        Ok(Some(self.u64()?).filter(|time| *time != 0))
    }

    pub(super) fn text(&mut self) -> Result<Bytes, CodecError> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.0.split_to(length))
    }

    pub(super) fn string(&mut self) -> Result<Arc<str>, CodecError> {
        let text = self.text()?;
        std::str::from_utf8(&text).map(Arc::from).map_err(|_| CodecError::Malformed)
    }

    pub(super) fn option(&mut self) -> Result<Option<[u8; 32]>, CodecError> {
        match self.u8()? {
            0 => Ok(None),
            1 => {
                self.need(32)?;
                let mut bytes = [0; 32];
                self.0.copy_to_slice(&mut bytes);
                Ok(Some(bytes))
            }
            _ => Err(CodecError::Malformed),
        }
    }

    pub(super) fn publication(&mut self) -> Result<Publication, CodecError> {
        match self.u8()? {
            1 => Announcements::decode(&self.text()?)
                .map(|announcements| Publication::Open(Arc::new(announcements)))
                .ok_or(CodecError::Malformed),
            2 => Ok(Publication::Sealed(self.text()?)),
            _ => Err(CodecError::Malformed),
        }
    }

    /// Returns the publication of a record that may have none.
    pub(super) fn optional_publication(&mut self) -> Result<Option<Publication>, CodecError> {
        if self.0.first() == Some(&0) {
            self.u8()?;
            return Ok(None);
        }
        self.publication().map(Some)
    }

    pub(super) fn saga(&mut self) -> Result<State, CodecError> {
        let phase = match self.u8()? {
            1 => SagaPhase::Running,
            2 => SagaPhase::Compensating,
            3 => SagaPhase::Stuck,
            _ => return Err(CodecError::Malformed),
        };
        Ok(State::Saga { phase, content: self.content()? })
    }

    pub(super) fn settler(&mut self) -> Result<Settler, CodecError> {
        match self.u8()? {
            1 => Ok(Settler::Upstream),
            2 => Ok(Settler::Operator),
            3 => Ok(Settler::Probe),
            _ => Err(CodecError::Malformed),
        }
    }

    pub(super) fn content(&mut self) -> Result<PrivateContent, CodecError> {
        match self.u8()? {
            1 => Ok(PrivateContent::Open(self.text()?)),
            2 => Ok(PrivateContent::Sealed(self.text()?)),
            _ => Err(CodecError::Malformed),
        }
    }

    pub(super) fn lock(&mut self) -> Result<Lock, CodecError> {
        let phase = match self.u8()? {
            1 => LockPhase::Free,
            2 => LockPhase::Looking,
            3 => LockPhase::Sent,
            _ => return Err(CodecError::Malformed),
        };
        let rest_ms = self.u64()?;
        Ok(Lock { phase, operation: slot(&self.text()?)?, rest_ms })
    }

    pub(super) fn review_stage(&mut self) -> Result<ReviewStage, CodecError> {
        match self.u8()? {
            1 => Ok(ReviewStage::Pending),
            2 => Ok(ReviewStage::Accepted),
            3 => Ok(ReviewStage::Rejected),
            _ => Err(CodecError::Malformed),
        }
    }

    /// Returns the extras, and the fence of a lost attempt.
    pub(super) fn extras(&mut self) -> Result<(Extras, Option<Fence>), CodecError> {
        let (mut extras, mut lost) = (Extras::default(), None);
        while !self.0.is_empty() {
            let (tag, content) = (self.u8()?, self.text()?);
            match tag {
                EXTRA_LEAVES => extras.leaves = Some(content),
                EXTRA_SPAN => extras.span = Some(span(&content)?),
                EXTRA_LOST => {
                    let fence = content.as_ref().try_into().map_err(|_| CodecError::Malformed)?;
                    lost = Some(Fence(u64::from_be_bytes(fence)));
                }
                EXTRA_SAGA => {
                    let mut note = RecordReader(content);
                    let tenant_mark = note.string()?;
                    extras.saga = Some(SagaNote { tenant_mark, summary: note.0 });
                }
                EXTRA_RESOURCE => extras.resource = Some(slot(&content)?),
                _ => {}
            }
        }
        Ok((extras, lost))
    }

    fn fields(&mut self) -> Result<HeaderMap, CodecError> {
        let fields = self.u32()? as usize;
        // A field takes at least nine bytes, so a forged count can't reserve more memory than the
        // record's size.
        self.need(fields.checked_mul(9).ok_or(CodecError::Malformed)?)?;
        let mut headers =
            HeaderMap::try_with_capacity(fields).map_err(|_| CodecError::Malformed)?;
        for _ in 0..fields {
            let name = HeaderName::from_bytes(&self.text()?).map_err(|_| CodecError::Malformed)?;
            let value =
                HeaderValue::from_maybe_shared(self.text()?).map_err(|_| CodecError::Malformed)?;
            headers.try_append(name, value).map_err(|_| CodecError::Malformed)?;
        }
        Ok(headers)
    }

    pub(super) fn reply(&mut self, has_trailers: bool) -> Result<Reply, CodecError> {
        let status = StatusCode::from_u16(self.u16()?).map_err(|_| CodecError::Malformed)?;
        let headers = self.fields()?;
        let trailers = if has_trailers { Some(self.fields()?) } else { None };
        let body = match self.u8()? {
            0 => ReplyBody::NotStored,
            1 => ReplyBody::Whole(std::mem::take(&mut self.0)),
            2 => ReplyBody::Sealed(std::mem::take(&mut self.0)),
            _ => return Err(CodecError::Malformed),
        };
        Ok(Reply { status, headers, body, trailers })
    }
}
