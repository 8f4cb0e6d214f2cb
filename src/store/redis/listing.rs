//! What is overdue, and lists for people: read partition by partition, bounded, without stopping the server.

use std::sync::atomic::Ordering;

use futures_util::future::try_join_all;
use redis::Value;

use super::{Redis, held, layout, time_ms, unexpected};
use crate::key::{PARTITIONS, Slot};
use crate::record::Held;
use crate::store::{Page, StoreError, is_listed};

/// Keys that one SCAN looks at: about a tenth of a millisecond of the server's time.
const SCAN_COUNT: usize = 500;

/// Keys that one SCAN looks at however small the page is: one key a round trip would take all day.
const SCAN_COUNT_MIN: usize = 10;

/// SCANs for one page. A database that is shared with other users yields short pages rather than long waits.
const SCANS_PER_PAGE: usize = 20;

/// Why a listing can't go on.
fn no_cursor() -> StoreError {
    StoreError::NotApplied("that is not the cursor of a listing".into())
}

impl Redis {
    /// See [`crate::store::Store::due`].
    pub(super) async fn overdue(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let now = time_ms(self.command(&redis::cmd("TIME")).await?)?.to_string();
        let first = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let partitions: Vec<u16> = (0..PARTITIONS).map(|n| first.wrapping_add(n) % PARTITIONS).collect();
        let mut counting = redis::pipe();
        for partition in &partitions {
            counting.cmd("ZCOUNT").arg(layout::due_key(*partition)).arg("-inf").arg(&now);
        }
        let counts = self.pipeline(&counting).await?;
        let mut reading = redis::pipe();
        for (partition, wanted) in shares(&partitions, &counts, 0, limit) {
            reading.cmd("ZRANGEBYSCORE").arg(layout::due_key(partition)).arg("-inf").arg(&now);
            reading.arg("LIMIT").arg(0).arg(wanted);
        }
        let slots = self.members(&reading).await?;
        let stays = try_join_all(slots.iter().map(|slot| self.stays_in_index(slot))).await?;
        Ok(slots.into_iter().zip(stays).filter_map(|(slot, stays)| stays.then_some(slot)).collect())
    }

    /// Whether a slot belongs into the index; if not, it is taken out.
    async fn stays_in_index(&self, slot: &Slot) -> Result<bool, StoreError> {
        let keys = [layout::record_key(slot), layout::due_key(slot.partition())];
        Ok(self.run(&self.scripts.forget, &keys, &[&layout::member(slot)]).await? == Value::Int(1))
    }

    /// The slots that a pipeline of index reads names.
    async fn members(&self, reading: &redis::Pipeline) -> Result<Vec<Slot>, StoreError> {
        if reading.is_empty() {
            return Ok(Vec::new());
        }
        let mut slots = Vec::new();
        for answer in self.pipeline(reading).await? {
            let Value::Array(members) = answer else { return Err(unexpected()) };
            slots.extend(members.iter().filter_map(bytes).filter_map(layout::slot_of_member));
        }
        Ok(slots)
    }

    /// Lists by the indexes. The cursor is a partition and a place in its index.
    pub(super) async fn list_unsettled(&self, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let (first, skip) = match cursor {
            None => (0, 0),
            Some(cursor) => place(cursor).ok_or_else(no_cursor)?,
        };
        let partitions: Vec<u16> = (first..PARTITIONS).collect();
        let mut counting = redis::pipe();
        for partition in &partitions {
            counting.cmd("ZCARD").arg(layout::due_key(*partition));
        }
        let counts = self.pipeline(&counting).await?;
        let mut reading = redis::pipe();
        let mut cursor = None;
        let mut left = limit;
        for (partition, wanted) in shares(&partitions, &counts, skip, usize::MAX) {
            let skip = if partition == first { skip } else { 0 };
            let taken = wanted.min(left);
            if taken > 0 {
                reading.cmd("ZRANGE").arg(layout::due_key(partition)).arg(skip).arg(skip + taken - 1);
            }
            left -= taken;
            if taken < wanted {
                cursor = Some(format!("{partition}:{}", skip + taken));
                break;
            }
        }
        let slots = self.members(&reading).await?;
        Ok(Page { records: self.load_all(slots).await?, cursor })
    }

    /// Lists by walking over all keys. The cursor is the server's.
    pub(super) async fn list_all(&self, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let mut cursor: u64 = cursor.unwrap_or("0").parse().map_err(|_| no_cursor())?;
        let mut slots = Vec::new();
        for _ in 0..SCANS_PER_PAGE {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(layout::RECORDS_MATCH).arg("COUNT").arg(limit.clamp(SCAN_COUNT_MIN, SCAN_COUNT));
            let (next, keys): (u64, Vec<Vec<u8>>) =
                redis::from_redis_value(self.command(&scan).await?).map_err(|_| unexpected())?;
            slots.extend(keys.iter().filter_map(|key| layout::slot_of(key)));
            cursor = next;
            if cursor == 0 || slots.len() >= limit {
                break;
            }
        }
        Ok(Page { records: self.load_all(slots).await?, cursor: (cursor != 0).then(|| cursor.to_string()) })
    }

    /// Reads what is still there of these slots. One that can't be read doesn't hide the others.
    async fn load_all(&self, slots: Vec<Slot>) -> Result<Vec<(Slot, Held)>, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME");
        let slots: Vec<Slot> = slots.into_iter().filter(is_listed).collect();
        for slot in &slots {
            pipeline.cmd("GET").arg(layout::record_key(slot));
        }
        let mut values = self.pipeline(&pipeline).await?.into_iter();
        let now_ms = time_ms(values.next().ok_or_else(unexpected)?)?;
        let mut records = Vec::with_capacity(slots.len());
        for (slot, value) in slots.into_iter().zip(values) {
            match held(value, now_ms) {
                Ok(Some(held)) => records.push((slot, held)),
                Ok(None) => {}
                Err(error) => tracing::warn!(operation = %slot, %error, "left out of a listing"),
            }
        }
        Ok(records)
    }
}

/// How many members to read of which partition: those that the counts tell of, `skip` fewer of the first, `limit` in all.
fn shares(partitions: &[u16], counts: &[Value], skip: usize, limit: usize) -> Vec<(u16, usize)> {
    let mut left = limit;
    let mut shares = Vec::new();
    for (n, (partition, count)) in partitions.iter().zip(counts).enumerate() {
        let Value::Int(count) = count else { continue };
        let count = usize::try_from(*count).unwrap_or(0).saturating_sub(if n == 0 { skip } else { 0 });
        let share = count.min(left);
        if share > 0 {
            shares.push((*partition, share));
        }
        left -= share;
    }
    shares
}

/// The place that a cursor of [`Redis::list_unsettled`] names.
fn place(cursor: &str) -> Option<(u16, usize)> {
    let (partition, rank) = cursor.split_once(':')?;
    Some((partition.parse().ok().filter(|partition| *partition < PARTITIONS)?, rank.parse().ok()?))
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
