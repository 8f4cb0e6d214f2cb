//! A checksum over the entries of an event log or of an outbox. It does not depend on their order.

use ring::digest::{Context, SHA256};

use super::progress::{CopyReport, CopyStep};
use crate::store::error::StoreError;
use crate::store::log::{EntryId, EventLog, LogEntry, member};

/// Entries per read.
const READ: usize = 1000;

/// Number of entries, and the sum of their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub entries: u64,
    digests: [u64; 4],
}

impl Sum {
    /// Sums a whole log. With `placed`, the digests include partition, id and link of each entry.
    pub(super) async fn of(
        log: &dyn EventLog,
        placed: bool,
        report: CopyReport<'_>,
    ) -> Result<Sum, StoreError> {
        let mut sum = Sum::default();
        for ends in log.ends().await? {
            let mut behind = EntryId::default();
            loop {
                let entries = log.read_partition(ends.partition, behind, READ).await?;
                let Some(last) = entries.last() else { break };
                behind = last.id;
                entries.iter().for_each(|entry| sum.add(entry, placed));
                report(CopyStep::CheckEvents, sum.entries);
            }
        }
        Ok(sum)
    }

    fn add(&mut self, entry: &LogEntry, placed: bool) {
        let mut digest = Context::new(&SHA256);
        digest.update(&member(&entry.slot));
        digest.update(&entry.event);
        if placed {
            digest.update(format!("|{}|{}|", entry.partition, entry.id).as_bytes());
            digest.update(entry.link.as_ref().map_or(&[], |link| link.as_bytes()));
        }
        self.add_digest(digest.finish().as_ref());
    }

    /// Adds an entry by its SHA-256.
    pub(super) fn add_digest(&mut self, digest: &[u8]) {
        self.entries += 1;
        for (lane, bytes) in self.digests.iter_mut().zip(digest.chunks_exact(8)) {
            *lane = lane.wrapping_add(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
        }
    }
}
