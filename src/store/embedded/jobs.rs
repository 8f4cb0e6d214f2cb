//! The jobs of an embedded store's writer, applied to the tables of one transaction.

use std::time::Duration;

use tokio::sync::oneshot;

use super::outbox_change::OutboxChange;
use super::tables::{EncodedRecord, Front, RawRecord, RecordKey, Tables};
use crate::key::Slot;
use crate::record::{CodecError, Fence, HEAD_BYTES, Version};
use crate::store::error::StoreError;
use crate::store::identities::Note;
use crate::store::log::{EntryId, Trimmed};
use crate::store::outbox::OutboxEvent;

/// A job of the writer.
pub(super) enum Job {
    /// Compares the version, then writes.
    Swap(Box<SwapJob>),
    /// Moves the deadlines of the attempt `fence`: see [`crate::store::Records::renew`].
    Renew { slot: Slot, fence: Fence, lease: Duration, keep: Duration },
    /// Writes a note, if the current text is as expected.
    SetNote { note: Note, expected: Option<String>, next: String },
    /// Marks how far a reader of the log has read.
    MarkRead { reader: String, read: EntryId },
    /// Appends a batch of observations.
    Observe { batch: Vec<u8> },
    /// Changes the outbox.
    Outbox(Box<OutboxChange>),
    /// Removes old entries of the log.
    Trim { older_than: Duration },
    /// Checks whether claims are accepted.
    Ping,
    /// Releases the file, and ends the writer.
    Close,
}

/// A write of a record.
pub(super) struct SwapJob {
    pub(super) slot: Slot,
    pub(super) expected: Option<Version>,
    /// Version, fence and state of the record to write.
    pub(super) head: [u8; HEAD_BYTES],
    /// Whether the record claims the slot, or is a saga.
    pub(super) claims: bool,
    /// Whether a tombstone blocks the claim.
    pub(super) heeds_tombstone: bool,
    pub(super) record: EncodedRecord,
    /// The tombstone to store beside the record.
    pub(super) tombstone: Option<EncodedRecord>,
    /// The event to append to the log, unless it is empty.
    pub(super) event: Vec<u8>,
    /// The events for sinks.
    pub(super) outbox: Vec<OutboxEvent>,
}

/// Reply of the writer.
#[derive(Debug)]
pub(super) enum WriteReply {
    /// Written, and durable.
    Stored,
    /// The slot holds another version.
    Stale(Option<RawRecord>),
    /// Whether the lease was renewed.
    Renewed(bool),
    /// Whether the note has the new text now.
    NoteSet(bool),
    /// Whether a change of the outbox has its effect.
    Outbox(bool),
    /// Result of trimming.
    Trimmed(Trimmed),
    /// The job is done; it has no result.
    Done,
}

/// A job, the caller that waits for its reply, and its result before the commit.
pub(super) struct WriteRequest {
    pub(super) job: Job,
    pub(super) reply: oneshot::Sender<Result<WriteReply, StoreError>>,
    pub(super) result: Option<JobResult>,
}

/// Result of a job, valid once the batch is committed.
pub(super) struct JobResult {
    pub(super) answer: Result<WriteReply, StoreError>,
    /// Whether the answer confirms a write of this job, in this batch or an earlier one.
    pub(super) wrote: bool,
    /// Whether the job changed something in this batch.
    pub(super) changed: bool,
}

impl WriteRequest {
    pub(super) fn answer(self, answer: Result<WriteReply, StoreError>) {
        // The caller may have left.
        _ = self.reply.send(answer);
    }
}

impl JobResult {
    fn unchanged(answer: WriteReply) -> JobResult {
        JobResult { answer: Ok(answer), wrote: false, changed: false }
    }

    fn written(answer: WriteReply) -> JobResult {
        JobResult { answer: Ok(answer), wrote: true, changed: true }
    }

    fn refused(error: StoreError) -> JobResult {
        JobResult { answer: Err(error), wrote: false, changed: false }
    }
}

impl From<CodecError> for JobResult {
    fn from(error: CodecError) -> JobResult {
        JobResult::refused(error.into())
    }
}

impl Job {
    /// Returns the bytes that the job adds to a commit.
    pub(super) fn size(&self) -> usize {
        match self {
            Job::Swap(exchange) => {
                let outbox =
                    exchange.outbox.iter().map(|event| event.content.size()).sum::<usize>();
                exchange.record.size() + exchange.event.len() + outbox
            }
            Job::Observe { batch } => batch.len(),
            Job::Renew { .. }
            | Job::SetNote { .. }
            | Job::MarkRead { .. }
            | Job::Outbox(_)
            | Job::Trim { .. }
            | Job::Ping
            | Job::Close => 0,
        }
    }

    /// Applies the job. `has_room`: whether the disk has enough free space for new claims.
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        has_room: bool,
    ) -> Result<JobResult, redb::Error> {
        match self {
            Job::Swap(exchange) => exchange.apply(tables, has_room),
            Job::Renew { slot, fence, lease, keep } => {
                let key = RecordKey::record(slot);
                let front = match tables.front(&key)? {
                    Ok(front) => front,
                    Err(error) => return Ok(error.into()),
                };
                let holds = |front: Front| {
                    front.has_lease() && front.fence() == *fence && !tables.is_over(&front)
                };
                if !front.is_some_and(holds) {
                    return Ok(JobResult::unchanged(WriteReply::Renewed(false)));
                }
                tables.renew(&key, *lease, *keep)?;
                Ok(JobResult::written(WriteReply::Renewed(true)))
            }
            Job::SetNote { note, expected, next } => {
                match tables.set_note(*note, expected.as_deref(), next)? {
                    true => Ok(JobResult::written(WriteReply::NoteSet(true))),
                    false => Ok(JobResult::unchanged(WriteReply::NoteSet(false))),
                }
            }
            Job::MarkRead { reader, read } => {
                tables.mark_read(reader, *read)?;
                Ok(JobResult::written(WriteReply::Done))
            }
            // Observations may be lost. They must not take the space that claims need.
            Job::Observe { .. } if !has_room => Ok(JobResult::refused(no_room())),
            Job::Observe { batch } => {
                tables.observe(batch)?;
                Ok(JobResult::written(WriteReply::Done))
            }
            Job::Outbox(job) => {
                let done = tables.change_outbox(job)?;
                Ok(JobResult::written(WriteReply::Outbox(done)))
            }
            Job::Trim { older_than } => Ok(match tables.trim(*older_than)? {
                nothing if nothing == Trimmed::default() => {
                    JobResult::unchanged(WriteReply::Trimmed(nothing))
                }
                trimmed => JobResult::written(WriteReply::Trimmed(trimmed)),
            }),
            Job::Ping if has_room => Ok(JobResult::unchanged(WriteReply::Done)),
            Job::Ping => Ok(JobResult::refused(no_room())),
            Job::Close => Ok(JobResult::unchanged(WriteReply::Done)),
        }
    }
}

impl SwapJob {
    fn apply(&mut self, tables: &mut Tables<'_>, has_room: bool) -> Result<JobResult, redb::Error> {
        let key = RecordKey::record(&self.slot);
        let current = match tables.front(&key)? {
            Ok(current) => current,
            Err(error) => return Ok(error.into()),
        };
        if current.is_some_and(|current| *current.head() == self.head) {
            return Ok(JobResult { answer: Ok(WriteReply::Stored), wrote: true, changed: false });
        }
        if current.map(|current| current.version()) != self.expected {
            return Ok(tables
                .raw(&key)?
                .map_or_else(JobResult::from, |raw| JobResult::unchanged(WriteReply::Stale(raw))));
        }
        if self.claims && self.heeds_tombstone {
            match tables.raw(&RecordKey::tombstone(&self.slot))? {
                Ok(None) => {}
                Ok(tombstone) => return Ok(JobResult::unchanged(WriteReply::Stale(tombstone))),
                Err(error) => return Ok(error.into()),
            }
        }
        if self.claims && self.expected.is_none() && !has_room {
            return Ok(JobResult::refused(no_room()));
        }
        if let Some(tombstone) = &mut self.tombstone {
            tables.put(&RecordKey::tombstone(&self.slot), tombstone)?;
        }
        tables.put(&key, &mut self.record)?;
        if !self.event.is_empty() {
            tables.append(&self.slot, &self.event)?;
        }
        tables.append_outbox(&self.slot, &self.outbox)?;
        Ok(JobResult::written(WriteReply::Stored))
    }
}

fn no_room() -> StoreError {
    StoreError::NotApplied("too little free disk space for new operations".into())
}
