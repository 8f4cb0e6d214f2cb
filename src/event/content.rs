//! The content of an event in the outbox: the event without the time of its change, and what the
//! gateway needs to deliver it.
//!
//! A content is: one byte of flags, the length of the note (4 bytes) and the note if it has one,
//! and the event without its end. Receivers never get flags and note.

use bytes::Bytes;

use super::json::text;
use crate::clock::rfc3339;

/// Most events that may lead to one another by calls. The next call would be a loop.
pub const HOPS_MAX: u8 = 8;

/// Bytes of a content with short names and no chosen members. Growing to them takes a third of the
/// time of writing it.
const USUAL_BYTES: usize = 640;

/// Flag: the change completes the operation.
const CLOSES: u8 = 1;
/// Flag: the content has a note.
const HAS_NOTE: u8 = 0x80;
/// The bits of the number of hops, behind [`CLOSES`].
const HOPS: u8 = 0x1e;
const HOPS_SHIFT: u32 = 1;

/// The part of a content that precedes the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentHead {
    /// Whether the change completes the operation.
    pub closes: bool,
    /// Number of events that led to the operation by calls, at most 15. See [`HOPS_MAX`].
    pub hops: u8,
}

/// An event without the time of its change, as the outbox has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventDraft<'c> {
    /// What precedes the event.
    pub head: ContentHead,
    /// The state of its delivery that a relay keeps with it.
    pub note: Option<&'c [u8]>,
    event: &'c [u8],
}

/// Content that is not the output of [`events_of`](super::events_of).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the outbox is malformed")]
pub struct MalformedEvent;

impl<'c> EventDraft<'c> {
    /// Returns the beginning of a content without a note.
    pub(super) fn begin(head: ContentHead) -> Vec<u8> {
        let mut content = Vec::with_capacity(USUAL_BYTES);
        content.push(head.flags());
        content
    }

    /// Reads a content.
    ///
    /// # Errors
    /// The content is malformed.
    pub fn parse(content: &'c [u8]) -> Result<EventDraft<'c>, MalformedEvent> {
        let (&flags, rest) = content.split_first().ok_or(MalformedEvent)?;
        if flags & !(CLOSES | HOPS | HAS_NOTE) != 0 {
            return Err(MalformedEvent);
        }
        let head = ContentHead { closes: flags & CLOSES != 0, hops: (flags & HOPS) >> HOPS_SHIFT };
        if flags & HAS_NOTE == 0 {
            return Ok(EventDraft { head, note: None, event: rest });
        }
        let (length, rest) = rest.split_first_chunk().ok_or(MalformedEvent)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| MalformedEvent)?;
        let (note, event) = rest.split_at_checked(length).ok_or(MalformedEvent)?;
        Ok(EventDraft { head, note: Some(note), event })
    }

    /// Returns the content with another note.
    pub fn with_note(&self, note: &[u8]) -> Bytes {
        // A note has a rendered request of some 64 KiB.
        let length = u32::try_from(note.len()).unwrap_or(u32::MAX);
        let flags = self.head.flags() | HAS_NOTE;
        [&[flags][..], &length.to_be_bytes(), note, self.event].concat().into()
    }

    /// Returns the whole event, as it is delivered. `changed_ms` is the time of the change, in ms
    /// since 1970 by the store's clock.
    pub fn finished(&self, changed_ms: u64) -> Bytes {
        let time = rfc3339(changed_ms);
        let mut event = Vec::with_capacity(self.event.len() + 2 * time.len() + 32);
        event.extend_from_slice(self.event);
        event.extend_from_slice(b",\"closed_at\":");
        if self.head.closes {
            text(&mut event, &time);
        } else {
            event.extend_from_slice(b"null");
        }
        event.extend_from_slice(b"},\"time\":");
        text(&mut event, &time);
        event.push(b'}');
        event.into()
    }
}

impl ContentHead {
    fn flags(self) -> u8 {
        let hops = (self.hops << HOPS_SHIFT) & HOPS;
        hops | if self.closes { CLOSES } else { 0 }
    }
}

/// Returns the whole event of a content, as it is delivered. `changed_ms` is the time of the
/// change, in ms since 1970 by the store's clock.
///
/// # Errors
/// The content is not the output of [`events_of`](super::events_of).
pub fn finished(content: &[u8], changed_ms: u64) -> Result<Bytes, MalformedEvent> {
    Ok(EventDraft::parse(content)?.finished(changed_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_and_the_hops_are_kept_beside_the_event_and_never_delivered() {
        let head = ContentHead { closes: true, hops: 8 };
        let mut content = EventDraft::begin(head);
        content.extend_from_slice(b"{\"data\":{\"state\":\"completed\"");
        let event = finished(&content, 7).unwrap();
        let draft = EventDraft::parse(&content).unwrap();
        assert_eq!((draft.head, draft.note), (head, None));
        let noted = draft.with_note(b"first");
        let again = EventDraft::parse(&noted).unwrap();
        assert_eq!((again.head, again.note), (head, Some(&b"first"[..])));
        let replaced = again.with_note(b"");
        assert_eq!(EventDraft::parse(&replaced).unwrap().note, Some(&b""[..]));
        for content in [&noted, &replaced] {
            assert_eq!(finished(content, 7).unwrap(), event);
        }
        for cut in 0..noted.len() - draft.event.len() {
            assert_eq!(EventDraft::parse(&noted[..cut]), Err(MalformedEvent), "{cut}");
        }
    }
}
