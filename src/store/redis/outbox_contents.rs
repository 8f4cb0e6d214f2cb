//! The contents of the outbox in Redis, listed while relays change it: HSCAN returns every field
//! that a hash has during the whole scan. Its pages go from partition to partition: the waiting
//! events of each sink, then the dead letters.
//!
//! Danger: a cursor of HSCAN belongs to one server. After a failover, the scan can miss fields.

use async_trait::async_trait;
use redis::Value;
use serde::{Deserialize, Serialize};

use super::answer::unexpected;
use super::client::Redis;
use super::layout::{member, slot_of_member};
use super::outbox::is_done;
use super::outbox_copy::{Section, SectionKind};
use super::outbox_values as values;
use crate::store::dead_letters::DeadLetterId;
use crate::store::outbox_contents::{ContentsPage, OutboxContents, StoredContents};
use crate::store::{ListError, StoreError};

/// About the number of operations or dead letters of one read. Events are up to 64 KiB long.
const SCAN_COUNT: usize = 64;

/// A place among the contents.
#[derive(Debug, Serialize, Deserialize)]
struct ContentsPlace {
    section: Section,
    /// The cursor of the next HSCAN in the section; 0 at its beginning.
    scan: u64,
}

#[async_trait]
impl OutboxContents for Redis {
    async fn contents(&self, cursor: Option<&str>) -> Result<ContentsPage, ListError> {
        let from = match cursor {
            None => ContentsPlace { section: Section::first(), scan: 0 },
            Some(cursor) => serde_json::from_str(cursor).map_err(|_| ListError::Cursor)?,
        };
        let mut page = ContentsPage::default();
        for section in self.sections().await?.range(&from.section..) {
            let mut scan = if *section == from.section { from.scan } else { 0 };
            loop {
                if page.is_full() {
                    let place = ContentsPlace { section: section.clone(), scan };
                    page.cursor = Some(serde_json::to_string(&place).map_err(|_| unexpected())?);
                    return Ok(page);
                }
                scan = self.scan_contents(section, scan, &mut page).await?;
                if scan == 0 {
                    break;
                }
            }
        }
        Ok(page)
    }

    async fn replace_contents(
        &self,
        before: &StoredContents,
        after: &StoredContents,
    ) -> Result<bool, StoreError> {
        let (key, names) = (&before.key, &self.names);
        let partition = key.slot.partition();
        let counts_key = names.outbox_counts_key(partition);
        let sink = key.sink.as_bytes();
        let (content, content_after) = (before.content.encode(), after.content.encode());
        let (Some(report), Some(report_after)) = (&before.report, &after.report) else {
            let keys = [counts_key, names.outbox_events_key(partition, &key.sink)];
            let (operation, order) = (member(&key.slot), key.order.encode());
            let args: [&[u8]; 5] = [sink, &content, &content_after, &operation, &order];
            let script = &self.scripts.outbox_replace;
            return is_done(self.run_outbox(partition, script, &keys, &args).await);
        };
        let keys = [counts_key, names.outbox_dead_key(partition)];
        let (id, report, report_after) =
            (DeadLetterId::of(key), report.encode(), report_after.encode());
        let args: [&[u8]; 6] =
            [sink, &content, &content_after, id.as_bytes(), &report, &report_after];
        let script = &self.scripts.outbox_replace_dead;
        is_done(self.run_outbox(partition, script, &keys, &args).await)
    }
}

/// The answer of a scan: where to continue, and fields with their values.
type ScannedFields = (u64, Vec<(Vec<u8>, Vec<u8>)>);

impl Redis {
    /// Adds a part of a section to the page. Returns the cursor of the next part; 0 at the end.
    /// Leaves out what can't be read, because another program wrote it.
    async fn scan_contents(
        &self,
        section: &Section,
        cursor: u64,
        page: &mut ContentsPage,
    ) -> Result<u64, StoreError> {
        let Section { partition, kind } = section;
        let key = match kind {
            SectionKind::Waiting(sink) => self.names.outbox_events_key(*partition, sink),
            SectionKind::Dead => self.names.outbox_dead_key(*partition),
        };
        let mut scan = redis::cmd("HSCAN");
        scan.arg(key).arg(cursor).arg("COUNT").arg(SCAN_COUNT);
        let answer: Value = self.command(*partition, &scan).await?;
        let (next, fields): ScannedFields =
            redis::from_redis_value(answer).map_err(|_| unexpected())?;
        for (name, value) in fields {
            match kind {
                SectionKind::Waiting(sink) => {
                    let Some(slot) = slot_of_member(&name) else { continue };
                    for event in values::waiting_events(sink, &slot, &value) {
                        let (key, content) = (event.key, event.content);
                        page.add(StoredContents { key, content, report: None });
                    }
                }
                SectionKind::Dead => {
                    let Some(letter) = values::letter(&value) else { continue };
                    let report = Some(letter.burial.report);
                    page.add(StoredContents { key: letter.key, content: letter.content, report });
                }
            }
        }
        Ok(next)
    }
}
