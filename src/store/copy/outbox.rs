//! Copies the outbox, and compares it: waiting events and dead letters.

use super::endpoint::{CopyError, CopyProgress, CopySource, CopyTarget};
use super::outbox_item::{OutboxItem, OutboxItems};
use super::progress::{CopyReport, CopyStep};
use super::sum::Sum;

/// The checksums of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OutboxSum {
    pub waiting: Sum,
    pub dead: Sum,
}

/// Copies waiting events and dead letters.
pub(super) async fn copy_outbox(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    progress: &mut CopyProgress,
    report: CopyReport<'_>,
) -> Result<(), CopyError> {
    let mut done = 0;
    while !progress.outbox_done {
        let OutboxItems { items, cursor } = from.outbox(progress.outbox_cursor.as_deref()).await?;
        progress.outbox_done = cursor.is_none();
        progress.outbox_cursor = cursor;
        to.put_outbox(&items, progress).await?;
        done += items.len() as u64;
        report(CopyStep::Outbox, done);
    }
    Ok(())
}

/// Compares all waiting events and dead letters of both stores.
pub(super) async fn compare_outbox(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    report: CopyReport<'_>,
) -> Result<OutboxSum, CopyError> {
    let original = OutboxSum::of(from, report).await?;
    let copy = OutboxSum::of(to, report).await?;
    if original != copy {
        return Err(CopyError::Differs(format!(
            "the copy has {} waiting events and {} dead letters, and the source has {} and {}, or \
             some of them differ",
            copy.waiting.entries,
            copy.dead.entries,
            original.waiting.entries,
            original.dead.entries
        )));
    }
    Ok(original)
}

impl OutboxSum {
    async fn of(store: &dyn CopySource, report: CopyReport<'_>) -> Result<OutboxSum, CopyError> {
        let (mut sum, mut cursor) = (OutboxSum::default(), None);
        loop {
            let page = store.outbox(cursor.as_deref()).await?;
            for item in &page.items {
                let sum = match item {
                    OutboxItem::Waiting { .. } => &mut sum.waiting,
                    OutboxItem::Dead(_) => &mut sum.dead,
                };
                sum.add_digest(&item.digest());
            }
            report(CopyStep::CheckOutbox, sum.waiting.entries + sum.dead.entries);
            match page.cursor {
                None => return Ok(sum),
                next => cursor = next,
            }
        }
    }
}
