//! Verification of a log: recomputes the chain of links and reports where it is broken.

use std::fmt;
use std::str::FromStr;

use super::entry::{Ends, EntryId, InvalidPosition, LINK_BYTES, Link, LogEntry, Mark, member};
use super::event_log::EventLog;
use crate::store::error::StoreError;

/// Entries per read.
const READ: usize = 1000;

/// The fault of an entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainFault {
    /// The entry does not link to the one before it. It was changed or inserted, or an entry before
    /// it is gone.
    Unlinked,
    /// The end of the log is gone. This entry was the last one written.
    CutOff,
}

impl ChainFault {
    /// Describes the fault for people.
    pub fn describe(self) -> &'static str {
        match self {
            ChainFault::Unlinked => {
                "doesn't link to the entry before it: it was changed or inserted, or an entry \
                 before it was removed"
            }
            ChainFault::CutOff => {
                "was the last entry written, and is missing or changed: the end of the log was cut \
                 off or changed"
            }
        }
    }
}

/// A broken place of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainBreak {
    /// The partition.
    pub partition: u16,
    /// The entry.
    pub id: EntryId,
    /// The fault.
    pub fault: ChainFault,
}

/// Where verification continues: behind an entry of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainCursor {
    partition: u16,
    behind: Option<Mark>,
}

impl fmt::Display for ChainCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.behind {
            None => write!(f, "{}", self.partition),
            Some(Mark { id, link }) => write!(f, "{}:{id}:{link}", self.partition),
        }
    }
}

impl FromStr for ChainCursor {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<ChainCursor, InvalidPosition> {
        let mut parts = text.split(':');
        let partition =
            parts.next().and_then(|partition| partition.parse().ok()).ok_or(InvalidPosition)?;
        let behind = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => None,
            (Some(id), Some(link), None)
                if link.len() == LINK_BYTES
                    && link.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
            {
                Some(Mark {
                    id: id.parse()?,
                    link: Link::from_bytes(link.as_bytes()).ok_or(InvalidPosition)?,
                })
            }
            _ => return Err(InvalidPosition),
        };
        Ok(ChainCursor { partition, behind })
    }
}

/// Result of verifying a part of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// Number of entries verified.
    pub entries: usize,
    /// Broken places.
    pub breaks: Vec<ChainBreak>,
    /// Where to continue; `None` at the end of the log.
    pub cursor: Option<ChainCursor>,
}

/// Recomputes the chain from a cursor on, over about `limit` entries. Entries that are appended
/// meanwhile may be left out.
///
/// # Errors
/// The store failed.
pub async fn verify(
    log: &dyn EventLog,
    from: Option<ChainCursor>,
    limit: usize,
) -> Result<Verification, StoreError> {
    let mut progress = Verification::default();
    let first = from.map_or(0, |cursor| cursor.partition);
    for ends in log.ends().await?.into_iter().filter(|ends| ends.partition >= first) {
        if progress.entries >= limit {
            progress.cursor = Some(ChainCursor { partition: ends.partition, behind: None });
            break;
        }
        let behind = from
            .filter(|cursor| cursor.partition == ends.partition)
            .and_then(|cursor| cursor.behind);
        let walk = Walk {
            log,
            ends,
            behind: later(behind, ends.trimmed),
            seen_last: behind.is_some_and(|at| at.id >= ends.last.id),
        };
        if let Some(behind) = walk.go(limit, &mut progress).await? {
            progress.cursor = Some(ChainCursor { partition: ends.partition, behind: Some(behind) });
            break;
        }
    }
    Ok(progress)
}

/// Returns the later mark: entries may have been trimmed since the cursor was made.
fn later(one: Option<Mark>, other: Option<Mark>) -> Option<Mark> {
    one.into_iter().chain(other).max_by_key(|mark| mark.id)
}

/// Verification of one partition.
struct Walk<'a> {
    log: &'a dyn EventLog,
    ends: Ends,
    behind: Option<Mark>,
    /// Whether the walk has reached the entry that was the last one when it began, and found it
    /// unchanged.
    seen_last: bool,
}

impl Walk<'_> {
    /// Verifies to the end of the partition, or until `limit` entries are verified. In the second
    /// case, returns the last verified entry.
    async fn go(
        mut self,
        limit: usize,
        progress: &mut Verification,
    ) -> Result<Option<Mark>, StoreError> {
        loop {
            let from = self.behind.map(|mark| mark.id).unwrap_or_default();
            let entries = self.log.read_partition(self.ends.partition, from, READ).await?;
            if entries.is_empty() {
                if !self.seen_last && !self.is_trimmed_to(self.ends.last.id).await? {
                    let Ends { partition, last, .. } = self.ends;
                    progress.breaks.push(ChainBreak {
                        partition,
                        id: last.id,
                        fault: ChainFault::CutOff,
                    });
                }
                return Ok(None);
            }
            for entry in entries {
                self.look_at(&entry, progress).await?;
            }
            if progress.entries >= limit {
                return Ok(self.behind);
            }
        }
    }

    async fn look_at(
        &mut self,
        entry: &LogEntry,
        progress: &mut Verification,
    ) -> Result<(), StoreError> {
        progress.entries += 1;
        let link = |before: Option<Mark>| {
            Link::of(before.map(|mark| mark.link), &member(&entry.slot), &entry.event)
        };
        let mut expected = link(self.behind);
        if entry.link != Some(expected) {
            // The entries before this one may have been trimmed meanwhile.
            let trimmed = self.trimmed().await?.filter(|mark| mark.id < entry.id);
            if trimmed.is_some_and(|mark| self.behind.is_none_or(|behind| behind.id < mark.id)) {
                expected = link(trimmed);
            }
        }
        if entry.link != Some(expected) {
            let (partition, id) = (entry.partition, entry.id);
            progress.breaks.push(ChainBreak { partition, id, fault: ChainFault::Unlinked });
        }
        // Continue from the stored link. The unchanged entries behind this one fit to it, so one
        // change is reported as one break.
        let link = entry.link.unwrap_or(expected);
        self.seen_last |= entry.id == self.ends.last.id && link == self.ends.last.link;
        self.behind = Some(Mark { id: entry.id, link });
        Ok(())
    }

    async fn trimmed(&self) -> Result<Option<Mark>, StoreError> {
        let ends = self.log.ends().await?;
        Ok(ends
            .into_iter()
            .find(|ends| ends.partition == self.ends.partition)
            .and_then(|ends| ends.trimmed))
    }

    async fn is_trimmed_to(&self, id: EntryId) -> Result<bool, StoreError> {
        Ok(self.trimmed().await?.is_some_and(|mark| mark.id >= id))
    }
}

#[cfg(test)]
mod tests;
